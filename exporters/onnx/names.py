"""Names inside an ONNX graph: those that a reader expects, each used once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterator, Sequence

import onnx_ir as ir

BATCH_NAME = "batch"


def tidy(
    model: ir.Model, *, inputs: Sequence[str], outputs: Sequence[str], scope: str, batch: bool
) -> None:
    """Give a graph made by torch's exporter its final names, in place.

    Args:
        model: the graph; no function bodies.
        inputs: names for its inputs, in order.
        outputs: names for its outputs, in order. One that an input has gets a suffix.
        scope: prefix to take off the names of initializers.
        batch: name the symbolic first axis of the inputs `batch`, wherever its symbol occurs.

    Metadata goes, since it holds source lines and paths of the machine that made the file.
    """
    graph = model.graph
    initializers = list(graph.initializers.values())
    names = [str(value.name).removeprefix(scope) for value in initializers]
    wanted = zip(
        (*graph.inputs, *graph.outputs, *initializers), (*inputs, *outputs, *names), strict=True
    )
    _rename(graph, list(wanted))
    if batch:
        _name_batch(graph)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(graph):
        value.metadata_props.clear()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _rename(graph: ir.Graph, wanted: Sequence[tuple[ir.Value, str]]) -> None:
    """Give values the names wanted for them; whatever else has such a name gets another."""
    final: dict[str, ir.Value] = {}
    for value, name in wanted:
        final[_fresh(name, final)] = value
    named = {id(value) for value in final.values()}
    others = [value for value in _values(graph) if id(value) not in named]
    used = {*final, *(str(value.name) for value in _values(graph))}
    for value in others:
        if value.name in final:
            value.name = _fresh(value.name, used)
            used.add(value.name)
    for value in final.values():  # two may swap names, so all give up theirs first
        value.name = _fresh("value", used)
        used.add(value.name)
    for name, value in final.items():
        value.name = name


def _fresh(name: str, used: Container[str]) -> str:
    candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(candidate for candidate in candidates if candidate not in used)


def _name_batch(graph: ir.Graph) -> None:
    symbols = {
        str(value.shape[0].value)
        for value in graph.inputs
        if value.shape and isinstance(value.shape[0], ir.SymbolicDim)
    }
    if len(symbols) != 1 or symbols == {BATCH_NAME}:
        return
    symbol = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for value in _values(graph):
        shape = value.shape or ir.Shape(())
        for axis, size in enumerate(shape):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                shape[axis] = symbol.sub(BATCH_NAME, size.value)
