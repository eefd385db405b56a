"""The graph of a file, ready to be run: nodes in order, names in their scopes, tensors apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    inliner,
)

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.metadata import proved_sizes
from fxrebasin.exporters.onnx.wire import Extent
from fxrebasin.importers.onnx.foreign import Alone
from fxrebasin.importers.onnx.operators import OPERATORS
from fxrebasin.importers.onnx.registry import Operator, Site
from fxrebasin.importers.onnx.tensors import dense, is_left, to_torch

_STANDARD = ("", "ai.onnx")
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_LISTS = (AttributeProto.FLOATS, AttributeProto.INTS)
_LOOKED_AT: Mapping[str, int] = {"Shape": 0, "Size": 0, "EyeLike": 0, "CastLike": 1}
"""Operators, and which of their inputs they ask for its sizes or type only."""

_PLAIN: Mapping[int, str] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.TYPE_PROTO: "tp",
}


Key: TypeAlias = tuple[str, str]
"""Where a tensor is stored: the scope of its graph, and its name there."""


@dataclass(frozen=True)
class Use:
    """One of the uses of a tensor that the file has once.

    Args:
        tensor: the name of what the file has.
        maker: the first output of the node that reads it.
        at: which of its inputs it is.
    """

    tensor: str
    maker: str
    at: int


@dataclass(frozen=True, eq=False)
class Step:
    """One node.

    Args:
        kind: name of its operator.
        domain: of that, empty for the standard's.
        name: of the node, made up where it has none.
        operator: what computes it; None if the table lacks it.
        site: what functions may ask about it.
        inputs: names, empty for those that are left out.
        outputs: names, empty for those that nobody wants.
        attributes: by name, without graphs.
        graphs: by the names of their attributes; none if the table lacks the operator.
        alone: the node as something that onnxruntime computes.
        done: names that are read here for the last time.
        rows: of inputs that are read as the rows that they are joined of, the names of these; see
            `fxrebasin.importers.onnx.gates`.
    """

    kind: str
    domain: str
    name: str
    operator: Operator | None
    site: Site
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    graphs: Mapping[str, Graph]
    alone: Alone
    done: tuple[str, ...] = ()
    rows: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def looks_at(self, at: int) -> bool:
        """Whether it asks an input for its sizes or type only, whatever numbers that holds.

        Args:
            at: which one.
        """
        return not self.domain and _LOOKED_AT.get(self.kind) == at

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the inputs whose numbers count."""
        return tuple(n for at, n in enumerate(self.inputs) if n and not self.looks_at(at))

    def reading(self, inputs: tuple[str, ...], graphs: Mapping[str, Graph]) -> Step:
        """The same node with other names for what it reads.

        Args:
            inputs: names, one for each that there are.
            graphs: its bodies.
        """
        alone = self.alone if inputs == self.inputs else self.alone.reading(inputs)
        return replace(self, inputs=inputs, graphs=graphs, alone=alone)


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph, or the body of a branch or loop.

    Args:
        inputs: names of what it is given.
        outputs: names of what it returns.
        steps: in an order in which they can be run.
        tensors: names of stored tensors within this graph, and in the whole model.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    tensors: Mapping[str, str]

    def all_steps(self) -> Iterator[tuple[Graph, Step]]:
        """Steps with the graph that they are in, those of bodies included."""
        for step in self.steps:
            yield self, step
            for graph in step.graphs.values():
                yield from graph.all_steps()


@dataclass(frozen=True, eq=False)
class Parsed:
    """A model.

    Args:
        graph: what is run.
        tensors: all that the file stores, by names that no other tensor has.
        stored: for those that can be written back, the key that `stored_tensors` has for them.
        types: element types and sizes of the inputs, by name.
        opsets: versions by domain.
        has_functions: whether the file defines operators, which are written out in the graph.
        uses: of tensors that the file has once, by the names that they have here.
        proved: sizes, by their names, on which the file is said to be right; none where it does
            not say so.
    """

    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    stored: Mapping[str, Key]
    types: Mapping[str, Any]
    opsets: Mapping[str, int]
    has_functions: bool = False
    uses: Mapping[str, Use] = field(default_factory=dict)
    proved: tuple[Mapping[str, int], ...] = ()


def parse(
    model: ModelProto,
    folder: Path | None = None,
    *,
    mapped: bool = False,
    places: Mapping[str, Extent] | None = None,
) -> Parsed:
    """Read a model.

    Args:
        model: as it is in the file.
        folder: where the file is, for tensors whose data are in files of their own.
        mapped: whether these are mapped into memory; see `fxrebasin.importers.onnx.tensors`.
        places: of the data that are in the file and not in the model, by the name of an
            initializer.

    Raises:
        InputError: the model has no graph, or tensors of types that cannot be computed.
        CheckpointError: the data of a tensor are missing.
    """
    own = {key for key, _ in stored_tensors(model.graph)}
    whole = inliner.inline_local_functions(model) if model.functions else model
    opsets = {_domain(item.domain): item.version for item in whole.opset_import}
    reader = _Reader(opsets, folder, own, mapped, places or {})
    graph = reader.graph(whole.graph, "")
    known = {item.name for item in model.graph.initializer}
    known |= {item.values.name for item in model.graph.sparse_initializer}
    types = {item.name: item.type for item in model.graph.input if item.name not in known}
    functions = bool(model.functions)
    return Parsed(
        graph, reader.tensors, reader.stored, types, opsets, functions, proved=proved_sizes(model)
    )


def _domain(name: str) -> str:
    return "" if name in _STANDARD else name


def graphs_of(graph: GraphProto, scope: str = "") -> Iterator[tuple[str, GraphProto]]:
    """A graph and its bodies, by their scopes.

    Args:
        graph: of a file.
        scope: of it.
    """
    yield scope, graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs_of(attribute.g, _inner(scope, node, attribute.name))


def stored_tensors(graph: GraphProto) -> Iterator[tuple[Key, TensorProto]]:
    """The tensors that a graph and its bodies store, those of Constant nodes included.

    Args:
        graph: of a file.
    """
    for scope, own in graphs_of(graph):
        for item in own.initializer:
            yield (scope, item.name), item
        for node in own.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    yield (scope, node.output[0]), attribute.t


def _inner(scope: str, node: NodeProto, attribute: str) -> str:
    """The scope of a body."""
    return f"{scope}{next(filter(None, node.output), node.name)}/{attribute}/"


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [
        body
        for attribute in node.attribute
        if attribute.type in _GRAPHS
        for body in ([attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
    ]


def _reads(node: NodeProto) -> set[str]:
    """Names that a node reads, those that its bodies read from outside included."""
    found = {name for name in node.input if name}
    for body in _bodies(node):
        made = {item.name for item in body.input} | {item.name for item in body.initializer}
        made |= {item.values.name for item in body.sparse_initializer}
        made |= {name for inner in body.node for name in inner.output}
        read = {item.name for item in body.output}
        read.update(*(_reads(inner) for inner in body.node))
        found |= read - made
    return found - {""}


def in_order(graph: GraphProto) -> list[NodeProto]:
    """Nodes such that each comes after those whose outputs it reads; some converters append casts.

    Raises:
        InputError: nodes read each other's outputs in a circle.
    """
    nodes = list(graph.node)
    maker = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    needs = [sorted({maker[name] for name in _reads(node) if name in maker}) for node in nodes]
    if all(at > need for at, found in enumerate(needs) for need in found):
        return nodes
    order: list[int] = []
    state = [0] * len(nodes)  # 1 while what it needs is visited, 2 when it is in the order
    for start in range(len(nodes)):
        pending = [start]
        while pending:
            at = pending[-1]
            waiting = [need for need in needs[at] if state[need] != 2]
            if state[at] == 2:
                pending.pop()
            elif not waiting:
                state[at] = 2
                order.append(pending.pop())
            elif state[at] == 1 and any(state[need] == 1 for need in waiting):
                raise InputError(
                    f"the graph goes in a circle through {nodes[at].op_type} {nodes[at].name!r}"
                )
            else:
                state[at] = 1
                pending += waiting
    return [nodes[at] for at in order]


@dataclass
class _Reader:
    """Reads graphs, and collects what they store.

    Args:
        opsets: versions by domain.
        folder: where the file is.
        own: keys of what the file itself stores; functions have constants as well.
        mapped: whether data in files of their own are mapped.
        places: of data of initializers that are in the file only.
    """

    opsets: Mapping[str, int]
    folder: Path | None
    own: set[Key]
    mapped: bool
    places: Mapping[str, Extent]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    stored: dict[str, Key] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def graph(self, graph: GraphProto, scope: str) -> Graph:
        """One graph.

        Args:
            graph: of the file.
            scope: in front of the names of its tensors; empty for the model's own.
        """
        tensors: dict[str, str] = {}
        for item in graph.initializer:
            place = self.places.get(item.name) if is_left(item) and not scope else None
            value = to_torch(item, self.folder, mapped=self.mapped, place=place)
            tensors[item.name] = self._keep(scope, item.name, value)
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            tensors[name] = self._keep(scope, name, dense(sparse, self.folder, mapped=self.mapped))
        nodes = in_order(graph)
        for node in nodes:
            if node.op_type == "Constant" and _domain(node.domain) == "":
                name = node.output[0]
                tensors[name] = self._keep(scope, name, self._constant(node))
        outputs = tuple(item.name for item in graph.output)
        types = {item.name: item.type for item in (*graph.value_info, *graph.output)}
        steps = [
            self._step(node, scope, types)
            for node in nodes
            if node.op_type != "Constant" or _domain(node.domain)
        ]
        known = {item.name for item in graph.initializer}
        inputs = tuple(item.name for item in graph.input if scope or item.name not in known)
        return Graph(inputs, outputs, tuple(_with_last_reads(steps, nodes, outputs)), tensors)

    def _keep(self, scope: str, local: str, value: torch.Tensor) -> str:
        name = scope + local
        while name in self.tensors:
            name += "'"
        self.tensors[name] = value
        if (scope, local) in self.own:
            self.stored[name] = (scope, local)
        return name

    def _constant(self, node: NodeProto) -> torch.Tensor:
        attribute = node.attribute[0]
        if attribute.name == "value":
            return to_torch(attribute.t, self.folder, mapped=self.mapped)
        if attribute.name == "sparse_value":
            return dense(attribute.sparse_tensor, self.folder, mapped=self.mapped)
        if attribute.name in ("value_float", "value_floats"):
            values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            return torch.tensor(values, dtype=torch.float32)
        if attribute.name in ("value_int", "value_ints"):
            numbers = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            return torch.tensor(numbers, dtype=torch.int64)
        raise InputError(f"the Constant {node.output[0]!r} holds text, which cannot be computed")

    def _step(self, node: NodeProto, scope: str, types: Mapping[str, TypeProto]) -> Step:
        domain = _domain(node.domain)
        outputs = tuple(node.output)
        if not outputs:
            raise InputError(
                f"{node.name or 'a node'}, which is a {node.op_type}, has no output; the file is "
                "damaged"
            )
        count = max((at + 1 for at, name in enumerate(outputs) if name), default=0)
        name = self._named(scope + (node.name or f"{node.op_type} of {outputs[0]}"))
        operator = OPERATORS.get((domain, node.op_type))
        if operator is not None and not operator.names(item.name for item in node.attribute):
            operator = None
        graphs: dict[str, Graph] = {}
        attributes: dict[str, Any] = {}
        for item in node.attribute:
            if operator is None:
                attributes[item.name] = item
            elif item.type == AttributeProto.GRAPH:
                graphs[item.name] = self.graph(item.g, _inner(scope, node, item.name))
            else:
                attributes[item.name] = self._value(item)
        return Step(
            node.op_type,
            domain,
            name,
            operator,
            Site(self.opsets.get(domain, 1), count),
            tuple(node.input),
            outputs,
            attributes,
            graphs,
            Alone(node, _reads(node), types, self.opsets),
        )

    def _named(self, name: str) -> str:
        while name in self._names:
            name += "'"
        self._names.add(name)
        return name

    def _value(self, item: AttributeProto) -> Any:
        if item.type == AttributeProto.STRING:
            return item.s.decode("utf-8", "replace")
        if item.type == AttributeProto.STRINGS:
            return [text.decode("utf-8", "replace") for text in item.strings]
        if item.type == AttributeProto.TENSOR:
            return to_torch(item.t, self.folder, mapped=self.mapped)
        if item.type == AttributeProto.SPARSE_TENSOR:
            return dense(item.sparse_tensor, self.folder, mapped=self.mapped)
        if item.type in _PLAIN:
            value = getattr(item, _PLAIN[item.type])
            return list(value) if item.type in _LISTS else value
        raise InputError(f"the attribute {item.name!r} is of a kind that is not computed")


def _with_last_reads(
    steps: Sequence[Step], nodes: Sequence[NodeProto], outputs: Sequence[str]
) -> Iterator[Step]:
    """The steps, each with the names that no later one reads."""
    reads = {id_of(node): _reads(node) for node in nodes}
    needed = set(outputs)
    found = []
    for step in reversed(steps):
        names = reads[step.outputs] | {name for name in step.outputs if name}
        last = names - needed
        needed |= names
        found.append((step, tuple(sorted(last))))
    for step, last_names in reversed(found):
        yield Step(**{**vars(step), "done": last_names})


def id_of(node: NodeProto) -> tuple[str, ...]:
    """What tells a node from others of its graph: the names that it makes."""
    return tuple(node.output)
