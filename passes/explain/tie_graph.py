"""Which axes are tied to which, and by which operator: the graph behind explanations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import networkx as nx
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fxrebasin.passes.fields.fields import Field, Labels, Value
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.origin import CONSTANT, Origin
from fxrebasin.passes.fields.rows import Ints, distinct
from fxrebasin.passes.group.state_fields import StateField, owner
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.record import Record

AxisName = tuple[str, int]
_Fields: TypeAlias = Mapping[str, Sequence[StateField]]


def tie_graph(
    propagation: Propagation, fields: _Fields, parameters: Iterable[str]
) -> nx.Graph[AxisName]:
    """Axes that one operator shows to hold the same units, joined by edges that name it."""
    kinds = dict.fromkeys(parameters, "parameter")
    graph: nx.Graph[AxisName] = nx.Graph()
    for state, shape in propagation.shapes.items():
        for axis in range(len(shape)):
            graph.add_node((state, axis), kind=kinds.get(state, "buffer"))
    reader = _Reader(propagation, fields)
    for record in propagation.records:
        _add_record(graph, propagation.ledger.origins[record.origin], reader, record)
    return graph


def _kin(ledger: Ledger) -> Ints:
    """For each unit a number that it shares with its kin: what it is tied to or lies inside of."""
    births = np.zeros(ledger.size, dtype=np.int64)
    for index, (start, end) in enumerate(ledger.births):
        births[start:end] = index
    roots = ledger.compress()
    rows, columns = [births], [births[roots]]
    for edge in ledger.edges:
        rows.append(births[edge.children])
        columns.append(births[ledger.find(edge.parents)])
    row, column = np.concatenate(rows), np.concatenate(columns)
    size = max(len(ledger.births), 1)
    graph = coo_matrix((np.ones(row.size, np.int8), (row, column)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component[births], dtype=np.int64)


def _state_axes(kin: Ints, items: Iterable[StateField]) -> dict[int, frozenset[int]]:
    found: dict[int, frozenset[int]] = {}
    for item in items:
        mine = _kin_in(kin, item.values)
        for axis in item.axes:
            found[axis] = found.get(axis, frozenset()) | mine
    return found


def _kin_in(kin: Ints, labels: Ints) -> frozenset[int]:
    free = labels[labels >= 0]
    return frozenset(distinct(kin[free]).tolist()) if free.size else frozenset()


class _Reader:
    """Which units each axis of a tensor holds, by the number of their kin."""

    def __init__(self, propagation: Propagation, fields: _Fields) -> None:
        ledger = propagation.ledger
        self.shapes = propagation.shapes
        self.kin = _kin(ledger)
        self.of_state = {state: _state_axes(self.kin, items) for state, items in fields.items()}

    def axes(self, name: str, value: Value) -> dict[int, frozenset[int]]:
        """By axis; `name` is the state tensor's, if it is one."""
        if name in self.of_state:
            return self.of_state[name]
        found: dict[int, frozenset[int]] = {}
        for item in value.fields:
            for axis in item.axes:
                found[axis] = found.get(axis, frozenset()) | self._kin(item, axis)
        return found

    def _kin(self, item: Field, axis: int) -> frozenset[int]:
        if isinstance(item, Labels):
            return _kin_in(self.kin, item.values.reshape(-1).numpy())
        own = owner(self.shapes[item.state], item.view.shape[axis], item.view.stride(axis))
        return frozenset() if own is None else self.of_state[item.state].get(own, frozenset())


def _add_record(graph: nx.Graph[AxisName], origin: Origin, reader: _Reader, record: Record) -> None:
    last: dict[int, AxisName] = {}
    joins = len({name for name, _ in record.inputs} - {"", CONSTANT}) > 1
    for name, value in (*record.inputs, *record.outputs):
        if name in ("", CONSTANT):
            continue
        for axis, numbers in sorted(reader.axes(name, value).items()):
            node = (name, axis)
            if node not in graph:
                graph.add_node(node, kind="value")
            for item in sorted(numbers):
                before = last.setdefault(item, node)
                if before != node and not graph.has_edge(before, node):
                    graph.add_edge(
                        before,
                        node,
                        operator=origin.operator,
                        node=origin.node,
                        source=origin.source,
                        joins=joins,
                    )
                last[item] = node
