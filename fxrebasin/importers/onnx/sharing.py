"""Tensors that several nodes read: one of its own for each use, in the graph and in files.

Exporters and optimisers keep tensors once that are equal bit for bit: biases, the weights of
normalisations, all parameters of layers that were copied and not trained yet. In the model they are
different ones, which need not go together. So each use gets a name; a file that is written keeps
one tensor for all uses that still hold the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from onnx import GraphProto, ModelProto, TensorProto, helper
from torch import Tensor

from fxrebasin.importers.onnx.graph import Graph, Parsed, Step, Use, graphs_of
from fxrebasin.importers.onnx.tensors import bits_of

_LOOKED_UP = frozenset(
    {
        *("Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"),
        *("Scatter", "ScatterElements", "ScatterND"),
    }
)
_NEED_NOT_BE_INPUTS = 4
"""Files of an older version of the format say of all tensors that they are inputs, too."""


_PASSED_ON = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"})

_Place: TypeAlias = tuple[str, int]
"""A node, and which of its inputs."""


def split(parsed: Parsed, names: Collection[str]) -> Parsed:
    """The model, with a tensor of its own for each use of tensors.

    Left as they are: embeddings, whose rows belong together wherever they are read; tensors of
    which each node slices another part, such as the gates of recurrent layers; tensors that the
    bodies of branches and loops read from outside, since these do the same at different times; and
    those that are read by functions of the file, or by operators that are not known.

    Args:
        parsed: the model.
        names: of the tensors to be split.
    """
    if parsed.has_functions:
        return parsed
    splitter = _Splitter(parsed, frozenset(names))
    graph = splitter.graph(parsed.graph)
    if not splitter.uses:
        return parsed
    tensors, stored = {}, {}
    copies: dict[str, list[str]] = {}
    for name, use in splitter.uses.items():
        copies.setdefault(use.tensor, []).append(name)
    for name, tensor in parsed.tensors.items():
        tensors[name] = tensor
        for copy in copies.get(name, ()):
            tensors[copy] = tensor.clone()
    for name, key in parsed.stored.items():
        stored.update(dict.fromkeys((name, *copies.get(name, ())), key))
    return replace(parsed, graph=graph, tensors=tensors, stored=stored, uses=splitter.uses)


class _Splitter:
    """Goes through graphs, and renames what nodes read.

    Attributes:
        uses: by the names of the new tensors.
    """

    def __init__(self, parsed: Parsed, names: frozenset[str]) -> None:
        self._taken, self._names = set(parsed.tensors), names
        self._tensors = parsed.tensors
        self._values = {name for _, step in parsed.graph.all_steps() for name in step.outputs}
        self.uses: dict[str, Use] = {}

    def graph(self, graph: Graph) -> Graph:
        shared = {
            name: places
            for name, places in _shared(graph, self._names).items()
            if not _reads_parts(graph, places, self._tensors)
        }
        tensors = dict(graph.tensors)
        steps = [self._step(step, tensors, shared) for step in graph.steps]
        return replace(graph, steps=tuple(steps), tensors=tensors)

    def _step(
        self, step: Step, tensors: dict[str, str], shared: Mapping[str, list[_Place]]
    ) -> Step:
        inputs = list(step.inputs)
        for at, local in enumerate(step.inputs):
            places = shared.get(local, [])
            if (step.name, at) not in places[1:]:
                continue  # the first use keeps the name
            ending = f"@{step.outputs[0]}" + f".{at}" * (step.inputs.count(local) > 1)
            name = tensors[local] + ending
            while name in self._taken or local + ending in self._values:
                name, ending = f"{name}'", f"{ending}'"
            self._taken.add(name)
            self.uses[name] = Use(tensors[local], step.outputs[0], at)
            inputs[at] = local + ending
            tensors[inputs[at]] = name
        graphs = {name: self.graph(body) for name, body in step.graphs.items()}
        return step.reading(tuple(inputs), graphs)


def _shared(graph: Graph, names: frozenset[str]) -> dict[str, list[_Place]]:
    """Where tensors are read that can be split, by their names in the graph."""
    found: dict[str, list[_Place]] = {}
    whole = set(graph.outputs)
    for step in graph.steps:
        if step.operator is None or step.kind in _LOOKED_UP:
            whole.update(step.inputs)
        for body in step.graphs.values():
            whole.update(read_inside(body))
        for at, name in enumerate(step.inputs):
            if graph.tensors.get(name) in names and not step.looks_at(at):
                found.setdefault(name, []).append((step.name, at))
    found = {name: places for name, places in found.items() if len(places) > 1}
    looked_up = set(_looked_up_later(graph)) if found else set()
    return {n: places for n, places in found.items() if n not in whole and n not in looked_up}


def _reads_parts(graph: Graph, places: Sequence[_Place], tensors: Mapping[str, Tensor]) -> bool:
    """Whether nodes slice a tensor, each at another place: it is not several that were alike."""
    steps = {step.name: step for step in graph.steps}
    starts = [_start(graph, steps[name], tensors) for name, at in places if not at]
    return len(starts) == len(places) == len(set(starts)) and None not in starts


def _start(graph: Graph, step: Step, tensors: Mapping[str, Tensor]) -> tuple[int, ...] | str | None:
    """Where a slice begins, or the name of that if it is computed; None if it is no slice."""
    if step.domain or step.kind != "Slice":
        return None
    if "starts" in step.attributes:
        return tuple(step.attributes["starts"])
    name = graph.tensors.get(step.inputs[1])
    return step.inputs[1] if name is None else tuple(tensors[name].reshape(-1).tolist())


def read_inside(graph: Graph, *, as_numbers: bool = False) -> Iterator[str]:
    """All names that a graph or a body reads, its own included.

    Args:
        graph: that reads.
        as_numbers: leave out what is only asked for its sizes or its type.
    """
    yield from graph.outputs
    for _, step in graph.all_steps():
        yield from step.used if as_numbers else step.inputs
        for body in step.graphs.values():
            yield from body.outputs


def _looked_up_later(graph: Graph) -> Iterator[str]:
    """Tensors that are looked up after they were cast or turned."""
    maker = {step.outputs[0]: step for step in graph.steps if step.kind in _PASSED_ON}
    for step in graph.steps:
        if step.kind in _LOOKED_UP:
            name = step.inputs[0]
            while name in maker:
                name = maker[name].inputs[0]
            yield name


def parted(parsed: Parsed, moved: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Uses that do not hold any more what the first use of their tensor holds.

    Args:
        parsed: the model.
        moved: tensors that are to hold something else, by name.
    """

    def content(name: str) -> Tensor:
        return moved.get(name, parsed.tensors[name])

    return tuple(
        name
        for name, use in parsed.uses.items()
        if (name in moved or use.tensor in moved)
        and not torch.equal(bits_of(content(name)), bits_of(content(use.tensor)))
    )


def unshare(proto: ModelProto, parsed: Parsed, names: Collection[str]) -> dict[str, TensorProto]:
    """Give uses of tensors a tensor of their own, with the numbers that they had.

    Args:
        proto: the model; it is changed.
        parsed: the same, read.
        names: of uses.

    Returns:
        The new tensors, by these names.
    """
    found: dict[str, TensorProto] = {}
    graphs = dict(graphs_of(proto.graph))
    for name in names:
        use, (scope, local) = parsed.uses[name], parsed.stored[name]
        owner = graphs[scope]
        node = next(item for item in owner.node if use.maker in item.output)
        made = owner.initializer.add()
        made.CopyFrom(_tensor(owner, local))
        made.name = local + name.removeprefix(use.tensor)
        node.input[use.at] = made.name
        if not scope and proto.ir_version < _NEED_NOT_BE_INPUTS:
            kind = helper.make_tensor_type_proto(made.data_type, list(made.dims))
            proto.graph.input.add(name=made.name, type=kind)
        found[name] = made
    return found


def _tensor(graph: GraphProto, name: str) -> TensorProto:
    found: TensorProto | None = next((t for t in graph.initializer if t.name == name), None)
    if found is not None:
        return found
    node = next(item for item in graph.node if name in item.output)
    constant: TensorProto = next(item.t for item in node.attribute if item.name == "value")
    return constant
