"""A graph with one of its branches taken in any case, to see what each computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from torch import Tensor

from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.operators.control import Body


def ways_of(parsed: Parsed, state: Collection[str]) -> Iterator[tuple[bool, ...]]:
    """Which branches to take, so that each that reads weights is taken in one of the ways.

    Args:
        parsed: the model.
        state: names of its tensors that are weights.

    Returns:
        Whether it is the first, for each depth of branches within branches; nothing for a model
        without such branches.
    """
    depth = _depth(parsed.graph, {}, state)
    return product((True, False), repeat=depth) if depth else iter(())


def taking(parsed: Parsed, state: Collection[str], way: Sequence[bool]) -> Parsed:
    """A model that takes some of its branches, whatever their conditions say.

    Args:
        parsed: the model.
        state: names of its tensors that are weights; other branches are taken as before.
        way: see `ways_of`.
    """
    return replace(parsed, graph=_taking(parsed.graph, {}, state, way))


def _taking(
    graph: Graph, around: Mapping[str, str], state: Collection[str], way: Sequence[bool]
) -> Graph:
    tensors = {**around, **graph.tensors}
    steps = []
    for step in graph.steps:
        chosen = _chooses(step, tensors, state)
        rest = way[1:] if chosen else way
        bodies = {name: _taking(body, tensors, state, rest) for name, body in step.graphs.items()}
        made = replace(step, graphs=bodies)
        if chosen and step.operator is not None:
            function = _first if way[0] else _second
            made = replace(made, operator=replace(step.operator, function=function))
        steps.append(made)
    return replace(graph, steps=tuple(steps))


def _first(_: Tensor, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    return tuple(then_branch())


def _second(_: Tensor, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    return tuple(else_branch())


def _depth(graph: Graph, around: Mapping[str, str], state: Collection[str]) -> int:
    tensors = {**around, **graph.tensors}
    return max(
        (
            _depth(body, tensors, state) + _chooses(step, tensors, state)
            for step in graph.steps
            for body in step.graphs.values()
        ),
        default=0,
    )


def _chooses(step: Step, tensors: Mapping[str, str], state: Collection[str]) -> bool:
    """Whether a node is a branch that reads weights."""
    return step.kind == "If" and any(_reads(body, tensors, state) for body in step.graphs.values())


def _reads(graph: Graph, around: Mapping[str, str], state: Collection[str]) -> bool:
    tensors = {**around, **graph.tensors}
    read = [*graph.outputs, *(name for step in graph.steps for name in step.inputs)]
    return any(tensors.get(name) in state for name in read) or any(
        _reads(body, tensors, state) for step in graph.steps for body in step.graphs.values()
    )
