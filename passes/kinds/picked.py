"""Operators that pick elements of a tensor by tensors of indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxrebasin.passes.kinds.marks import Mark, Value
from fxrebasin.passes.kinds.walk import Step, handles, shape_of


@handles("index")
def _index(step: Step) -> list[Value]:
    return _picked(step, dict(enumerate(step.args["indices"])))


@handles("index_select")
def _index_select(step: Step) -> list[Value]:
    rank = len(shape_of(step.args["self"]))
    return _picked(step, {step.args["dim"] % rank: step.args["index"]})


def _picked(step: Step, given: dict[int, fx.Node | None]) -> list[Value]:
    """Units that are the same wherever indices point go along, and so do all by known indices."""
    indices = {axis: item for axis, item in given.items() if item is not None}
    whole_numbers = all(item.meta["val"].dtype is not torch.bool for item in indices.values())
    if not whole_numbers or any(step.value(item) for item in indices.values()):
        return step.give_up()
    found = [_moved(step, mark, indices) for mark in step.value(step.args["self"])]
    return [tuple(mark for mark in found if mark is not None)]


def _moved(step: Step, mark: Mark, indices: dict[int, fx.Node]) -> Mark | None:
    if all(mark.units.shape[axis] == 1 for axis in indices):
        return mark.moved(lambda units: _without(units, indices))
    [axis, *further] = indices
    places = None if further else step.walk.graph.constant(indices[axis])
    if places is None:
        step.analysis.kept(mark)
        return None
    return mark.moved(
        lambda units: (
            _without(units, indices)
            if units.shape[axis] == 1
            else units[(slice(None),) * axis + (places,)]
        )
    )


def _without(units: Tensor, indices: dict[int, fx.Node]) -> Tensor:
    """Units with axes of size 1 in place of those that indices stand for."""
    axes = sorted(indices)
    count = max(len(shape_of(item)) for item in indices.values())
    at = axes[0] if _adjacent(axes) else 0
    kept = [size for axis, size in enumerate(units.shape) if axis not in indices]
    return units.reshape([*kept[:at], *[1] * count, *kept[at:]])


def _adjacent(axes: Sequence[int]) -> bool:
    """Whether the axes of indices stay where they were; else they come first."""
    return axes[-1] - axes[0] == len(axes) - 1
