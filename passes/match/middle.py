"""How far a model between others is from what these compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from fxrebasin.running.batches import Batch, Runner, State


def distances_midway(
    running: Runner, a: State, moved: Sequence[Mapping[str, Tensor]], batches: Sequence[Batch]
) -> list[float]:
    """Distances of what models midway compute from the mean of what both ends do.

    Without labels and a loss that is what comes closest to a barrier: whatever acted on a model
    leaves its outputs as they are, but not those of the model in the middle of the line.

    Args:
        running: of the model, in eval mode, with the statistics that the states hold.
        a: of the reference.
        moved: the state of the other model after each of several elements acted on it.
        batches: of data.

    Returns:
        For each element: the norm of the difference, relative to that of the mean. Infinity for
        outputs without floating numbers.
    """
    first = running.own(a)
    ends = [running.own(state) for state in moved]
    squares, total = [0.0] * len(ends), 0.0
    for batch in batches:
        outputs = [_numbers(running, state, batch) for state in (first, ends[0])]
        mean = [(one + two) / 2 for one, two in zip(*outputs, strict=True)]
        total += sum(float(item.square().sum()) for item in mean)
        for index, end in enumerate(ends):
            middle = _numbers(running, _between(first, end), batch)
            apart = (float((x - y).square().sum()) for x, y in zip(middle, mean, strict=True))
            squares[index] += sum(apart)
    return [(square / total) ** 0.5 if total else float("inf") for square in squares]


def distance_of_mean(
    running: Runner, states: Sequence[State], weights: Sequence[float], batches: Sequence[Batch]
) -> float:
    """The distance of what the mean of many models computes from the mean of what they do.

    Args:
        running: of the model, in eval mode, with the statistics that the states hold.
        states: of all models.
        weights: how much each counts.
        batches: of data.

    Returns:
        The norm of the difference, relative to that of the mean of what they compute.
    """
    own = [running.own(state) for state in states]
    middle = mean_of_states(own, weights)
    apart, total = 0.0, 0.0
    for batch in batches:
        outputs = [_numbers(running, state, batch) for state in own]
        for found, *each in zip(_numbers(running, middle, batch), *outputs, strict=True):
            mean = sum(w * x for w, x in zip(weights, each, strict=True)) / sum(weights)
            apart += float((found - mean).square().sum())
            total += float(torch.as_tensor(mean).square().sum())
    return float((apart / total) ** 0.5) if total else float("inf")


def mean_of_states(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of the floating numbers of states; all else as in the first.

    Args:
        states: by name.
        weights: how much each counts.
    """
    found, weight = dict(states[0]), weights[0]
    for state, own in zip(states[1:], weights[1:], strict=True):
        weight += own
        for name, mean in found.items():
            if mean.is_floating_point():
                found[name] = torch.lerp(mean, state[name], own / weight)
    return found


def _between(a: State, b: State) -> dict[str, Tensor]:
    numbers = (name for name in a if a[name].is_floating_point())
    return {**a, **{name: torch.lerp(a[name], b[name], 0.5) for name in numbers}}


def _numbers(running: Runner, state: State, batch: Batch) -> list[Tensor]:
    """All floating tensors of the outputs."""
    with torch.no_grad():
        outputs: Any = running.call(dict(state), batch)
    leaves = _pytree.tree_leaves(outputs)
    return [x.double() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
