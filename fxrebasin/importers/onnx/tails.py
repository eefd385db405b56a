"""What follows a layer channel by channel, and what both are as one layer.

Exporters and optimisers write a convolution and its BatchNorm as one convolution, with the numbers
of both multiplied in advance. What may be folded is a tail of the layer: nodes that do to each of
its channels the same affine thing everywhere, which nothing else reads in between. What a tail does
is found by running it on zeros and on ones, however it is spelt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import TypeProto
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.operators import OPERATORS
from fxrebasin.importers.onnx.sharing import read_inside

_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv")
_PRODUCTS = ("MatMul", "Gemm")
_AFFINE = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity"})
_BIAS_ONLY = ("Add", "Identity")
_SHIFTS: Mapping[str, tuple[int, ...]] = {
    **{"BatchNormalization": (2, 3), "Add": (0, 1), "Sub": (0, 1)},
    **{"Mul": (), "Div": (), "Identity": ()},
}
"""Inputs that are added, or go into what is."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What a layer and so much of its tail are together.

    Args:
        layer: the name of what the layer makes.
        end: the name of what its tail makes of that.
        steps: names of the nodes of the tail.
        factor: what the tail multiplies each channel by.
        bias: what the layer's own bias and the tail add to each channel; None for zeros.
        held: the name of a tensor with a number for each channel that is added; None if none is.
        names: of the tensors that the tail reads.
        places: sizes, of one each, of the axes behind the channels.
    """

    layer: str
    end: str
    steps: tuple[str, ...]
    factor: Tensor
    bias: Tensor | None
    held: str | None
    names: tuple[str, ...]
    places: tuple[int, ...]


def folds_of(parsed: Parsed, state: Collection[str]) -> dict[str, Fold]:
    """For each value that is at the end of a tail, or within one, what it is of its layer.

    Args:
        parsed: the model.
        state: names of its tensors that are weights.
    """
    graph = parsed.graph
    constant = _constants(graph)
    readers = _readers(graph)
    found: dict[str, Fold] = {}
    for step in graph.steps:
        channels = _channels(step, graph, parsed)
        if channels is None:
            continue
        tail = [*_tail(step, graph, readers, constant)]
        if any(item.kind not in _BIAS_ONLY for item in tail):
            found.update(_folded(parsed, state, step, channels, tail))
    return found


def without_tails(parsed: Parsed, folds: Mapping[str, Fold]) -> Parsed:
    """The model with layers that are one with their tails: these add the bias, and no more.

    Args:
        parsed: the model. What is added is what it holds as the tensor `Fold.held`, and its layers
            have the weights that they have together with their tails.
        folds: tails, by where they end.
    """
    if not folds:
        return parsed
    layers = {fold.layer for fold in folds.values()}
    inside = {name for fold in folds.values() for name in fold.steps}
    graph, tensors = parsed.graph, dict(parsed.tensors)
    local = dict(graph.tensors)
    steps: list[Step] = []
    for step in graph.steps:
        name = step.outputs[0]
        if name in layers:
            steps.append(replace(step, inputs=step.inputs[:2]))
        elif name in folds:
            fold = folds[name]
            inputs: tuple[str, ...] = (fold.layer,)
            bias = None if fold.bias is None or fold.held is None else tensors[fold.held]
            if bias is not None:
                added = _free(f"{name} bias", tensors, local)
                tensors[added] = bias.reshape(-1, *fold.places)
                local[added] = added
                inputs = (*inputs, added)
            steps.append(_adding(step, inputs))
        elif step.name not in inside:
            steps.append(step)
    return replace(parsed, graph=replace(graph, steps=tuple(steps), tensors=local), tensors=tensors)


def _free(name: str, *taken: Collection[str]) -> str:
    while any(name in names for names in taken):
        name += "'"
    return name


def _adding(step: Step, inputs: tuple[str, ...]) -> Step:
    """A sum in the place of a node."""
    kind = "Add" if len(inputs) > 1 else "Identity"
    operator = OPERATORS["", kind]
    return replace(step, kind=kind, operator=operator, inputs=inputs, attributes={})


def _constants(graph: Graph) -> set[str]:
    """Names of values that depend on stored tensors only."""
    found = set(graph.tensors)
    for step in graph.steps:
        read = [name for name in step.inputs if name]
        if read and found.issuperset(read) and not step.graphs and step.operator is not None:
            found.update(name for name in step.outputs if name)
    return found


def _readers(graph: Graph) -> dict[str, list[Step | None]]:
    """Who reads each value; None for what is not a node of the graph itself."""
    found: dict[str, list[Step | None]] = {}
    for step in graph.steps:
        for name in step.inputs:
            found.setdefault(name, []).append(step)
        for body in step.graphs.values():
            for name in read_inside(body):
                found.setdefault(name, []).append(None)
    for name in graph.outputs:
        found.setdefault(name, []).append(None)
    return found


def _channels(step: Step, graph: Graph, parsed: Parsed) -> tuple[int, ...] | None:
    """The shape of a layer's output with one place, and all channels; None for what is no layer."""
    stored = [parsed.tensors[graph.tensors[n]] if n in graph.tensors else None for n in step.inputs]
    weight = stored[1] if len(stored) > 1 and stored[0] is None else None
    if weight is None or step.operator is None or any(step.inputs[3:]):
        return None
    shape, own = weight.shape, step.attributes
    if step.kind in _CONVOLUTIONS and not own.get("activation"):
        by_group = step.kind == "ConvTranspose"
        count = shape[1] * int(own.get("group", 1)) if by_group else shape[0]
        found = (1, count, *[1] * (len(shape) - 2))
    elif step.kind in _PRODUCTS and not step.domain and len(shape) == 2:
        if any(own.get(name, 1) != 1 for name in ("alpha", "beta")):
            return None
        found = (1, shape[0] if own.get("transB") else shape[1])
    else:
        return None
    for name, bias in zip(step.inputs[2:], stored[2:], strict=True):
        if name and (bias is None or bias.numel() != found[1]):
            return None
    return found


def _tail(
    layer: Step, graph: Graph, readers: Mapping[str, list[Step | None]], constant: Collection[str]
) -> Iterator[Step]:
    name = layer.outputs[0]
    while True:
        read = readers.get(name, [])
        step = read[0] if len(read) == 1 else None
        if step is None or step.domain or step.kind not in _AFFINE or step.site.outputs > 1:
            return
        if step.attributes.get("training_mode") or (step.kind == "Div" and step.inputs[0] != name):
            return
        if any(other and other != name and other not in constant for other in step.inputs):
            return
        yield step
        name = step.outputs[0]


def _folded(
    parsed: Parsed, state: Collection[str], layer: Step, shape: tuple[int, ...], tail: list[Step]
) -> Iterator[tuple[str, Fold]]:
    graph, bias = parsed.graph, _stored(parsed, layer.inputs[2:3])
    made = {out: step for step in graph.steps for out in step.outputs}
    running = layer.outputs[0]
    values = _run(parsed, running, shape, tail)
    names: list[str] = []
    added = [graph.tensors[name] for name in layer.inputs[2:3] if name in graph.tensors]
    for count, (at_zero, at_one) in enumerate(values):
        step = tail[count]
        if at_zero.shape != shape or at_one.shape != shape:
            return  # not the same at every place
        for at, name in enumerate(step.inputs):
            below = _below(graph, made, name) if name != running else []
            names += below
            added += below if at in _SHIFTS[step.kind] else []
        factor, shift = (at_one - at_zero).reshape(-1), at_zero.reshape(-1)
        if bias is not None:
            shift = shift + factor * bias
        held = [n for n in added if parsed.tensors[n].numel() == factor.numel()]
        held.sort(key=lambda name: name not in state)
        running = step.outputs[0]
        yield (
            running,
            Fold(
                layer=layer.outputs[0],
                end=running,
                steps=tuple(item.name for item in tail[: count + 1]),
                factor=factor,
                bias=shift if bool(shift.any()) else None,
                held=held[0] if held else None,
                names=tuple(dict.fromkeys(names)),
                places=shape[2:],
            ),
        )


def _stored(parsed: Parsed, names: tuple[str, ...]) -> Tensor | None:
    found = [parsed.tensors[parsed.graph.tensors[n]] for n in names if n in parsed.graph.tensors]
    return found[0].double().reshape(-1) if found else None


def _below(graph: Graph, made: Mapping[str, Step], name: str) -> list[str]:
    """Names of the stored tensors that a constant is computed from."""
    pending, found = [name], []
    while pending:
        own = pending.pop()
        if own in graph.tensors:
            found.append(own)
        elif own in made:
            pending += [item for item in made[own].inputs if item]
    return found


def _run(
    parsed: Parsed, start: str, shape: tuple[int, ...], tail: list[Step]
) -> list[tuple[Tensor, Tensor]]:
    """What a tail makes of zeros and of ones, after each of its nodes."""
    graph = parsed.graph
    needed = _needed(graph, start, tail)
    read = {name for step in needed for name in step.inputs if name in graph.tensors}
    tensors = {name: graph.tensors[name] for name in graph.tensors if name in read}
    ends = tuple(step.outputs[0] for step in tail)
    steps = tuple(replace(step, done=()) for step in needed)
    stored = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in ((own, parsed.tensors[own]) for own in tensors.values())
    }
    module = OnnxModule(
        replace(
            parsed,
            graph=Graph((start,), ends, steps, tensors),
            tensors=stored,
            types={start: TypeProto()},
        )
    )
    found: list[list[Any]] = []
    try:
        with torch.no_grad():
            for value in (0.0, 1.0):
                given = torch.full(shape, value, dtype=torch.float64)
                found.append([*module(given).values()])
    except (RuntimeError, ValueError, IndexError, TypeError, InputError):
        return []
    return list(zip(*found, strict=True))


def _needed(graph: Graph, start: str, tail: list[Step]) -> list[Step]:
    """A tail, and what its constants are computed by, in the order of the graph."""
    wanted = {name for step in tail for name in step.inputs} - {start}
    found = list(tail)
    inside = {step.name for step in tail}
    for step in reversed(graph.steps):
        if step.name not in inside and wanted.intersection(step.outputs):
            found.append(step)
            wanted.update(step.inputs)
    names = {step.name for step in found}
    return [step for step in graph.steps if step.name in names]
