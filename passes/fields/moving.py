"""Fields of tensors whose positions are viewed, moved or chosen: the move is run on the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.elements import separate
from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    Value,
    elements_of,
    free_labels,
    labels_of,
    onto_axes,
    squeeze_constant,
)
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.labels import INSIDE, NONE, OUTSIDE
from fxrebasin.passes.fields.ledger import Ledger


def pick_axes(item: Field, order: Sequence[int]) -> Field:
    """Keep only the given axes, in their order (the field varies along no other)."""
    axes = tuple(sorted(order.index(axis) for axis in item.axes))
    if isinstance(item, Labels):
        drop = [axis for axis in range(item.values.ndim) if axis not in order]
        values = item.values.permute([*order, *drop]).reshape([item.values.shape[a] for a in order])
        return replace(item, values=values, axes=axes)
    drop = [axis for axis in range(item.view.ndim) if axis not in order]
    view = item.view.permute([*order, *drop])
    for _ in drop:
        view = view.select(-1, 0)
    return Elements(item.state, view, axes)


def whole_view(item: Elements, shape: Sequence[int]) -> Tensor:
    """The view of a field, expanded to the shape of the tensor that it is a field of."""
    view = item.view
    for axis in range(view.ndim):
        if axis not in item.axes:
            view = view.narrow(axis, 0, 1)
    return view.expand(tuple(shape))


def view_fields(
    ledger: Ledger, value: Value, move: Callable[[Tensor], Any], outputs: int
) -> list[tuple[Field, ...]]:
    """Run a view operator on every field; no labels are copied."""
    found: list[list[Field]] = [[] for _ in range(outputs)]
    for item in value.fields:
        if isinstance(item, Labels):
            _view_labels(ledger, item, value.shape, move, found)
            continue
        views = _as_list(move(whole_view(item, value.shape)))
        if any(_needs_labels(moved) for moved in views):
            for part in separate(ledger, item):
                _view_labels(ledger, part, value.shape, move, found)
            continue
        for fields, moved in zip(found, views, strict=True):
            elements = elements_of(item.state, moved)
            fields += [] if elements is None else [elements]
    return [met(ledger, fields) for fields in found]


def met(ledger: Ledger, fields: Sequence[Field]) -> tuple[Field, ...]:
    """Fields that came to lie along the same axes: which labels of theirs meet has to be recorded.

    Once positions were chosen, or brought together, not all pairs of labels occur any more, as they
    do where fields have axes of their own.
    """
    axes = [axis for item in fields for axis in item.axes]
    return tuple(fields) if len(set(axes)) == len(axes) else join(ledger, fields)


def _view_labels(
    ledger: Ledger,
    item: Labels,
    shape: Sequence[int],
    move: Callable[[Tensor], Any],
    found: Sequence[list[Field]],
) -> None:
    for fields, moved in zip(found, _as_list(move(item.values.expand(tuple(shape)))), strict=True):
        values = _strip(moved)
        if values.numel() == item.values.numel() and not overlaps(values):
            labels = labels_of(values, item, item.injective)
            fields += [] if labels is None else [labels]
        else:
            fields += chosen_labels(ledger, values, item)


def _strip(values: Tensor) -> Tensor:
    """Undo the expansion of axes along which labels do not vary."""
    for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if size > 1 and stride == 0:
            values = values.narrow(axis, 0, 1)
    return values


def _as_list(result: Any) -> list[Tensor]:
    """The tensors that an operator returned, whether one or several."""
    return [result] if isinstance(result, Tensor) else list(result)


def _needs_labels(moved: Tensor) -> bool:
    """Whether a view of a state tensor cannot say what it holds by its strides.

    One that holds a single element of several, at however many positions, varies along no axis; of
    windows that overlap, an element is at several positions.
    """
    single = moved.numel() > 0 and elements_of("", moved) is None
    return single or overlaps(moved)


def overlaps(view: Tensor) -> bool:
    """Whether an element may be at several positions, other than by expansion."""
    reached = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride > 0:
            if stride <= reached:
                return True
            reached += stride * (size - 1)
    return False


def chosen_labels(ledger: Ledger, values: Tensor, source: Labels) -> list[Labels]:
    """The labels of positions that were chosen from those of a field.

    That they were chosen sets their units apart, even where only one is left, which may then be at
    several positions.
    """
    chosen = free_labels(values, source)
    if chosen is not None:
        ledger.remember(chosen)
    elif values.numel():
        ledger.remember_units(values.reshape(-1)[:1].numpy())
    return [] if chosen is None else [chosen]


def move_labels(
    ledger: Ledger,
    value: Value,
    move: Callable[[Tensor], Tensor],
    axes: Sequence[int],
    shape: Sequence[int],
) -> Value:
    """Run an operator that copies data on those fields that vary along the axes it works on."""
    ndim = len(value.shape)
    wanted = {axis % max(ndim, 1) for axis in axes}
    fields: list[Field] = []
    for item in materialised(ledger, value, wanted):
        if not isinstance(item, Labels) or not wanted & set(item.axes):
            fields += coarsen(ledger, item, set(range(ndim)) - wanted)
            continue
        before = [
            size if axis in wanted else item.values.shape[axis]
            for axis, size in enumerate(value.shape)
        ]
        values = squeeze_constant(move(item.values.expand(before)), range(ndim))
        fields += chosen_labels(ledger, values, item)
    return Value(tuple(shape), met(ledger, fields))


def materialised(ledger: Ledger, value: Value, axes: set[int]) -> list[Field]:
    """The fields, with state tensors that vary along the given axes turned into labels."""
    fields: list[Field] = []
    for item in value.fields:
        if isinstance(item, Labels) or not axes & set(item.axes):
            fields.append(item)
        else:
            fields += separate(ledger, item)
    return fields


def put_at(
    ledger: Ledger, value: Value, axis: int, places: Tensor, shape: Sequence[int]
) -> list[Field]:
    """The fields of slices along an axis that are put at places of a tensor of some shape."""
    fields: list[Field] = []
    for item in materialised(ledger, value, {axis}):
        if not isinstance(item, Labels) or axis not in item.axes:
            fields += coarsen(ledger, item, set(range(len(shape))) - {axis})
            continue
        size = [*item.values.shape]
        size[axis] = shape[axis]
        values = torch.full(size, NONE).index_copy(axis, places, item.values)
        fields += chosen_labels(ledger, values, item)
    return fields


def part_of_axis(shape: Sequence[int], axis: int, places: Tensor, reason: str) -> list[Field]:
    """Tells places along an axis from the rest; nothing where there is no rest."""
    if places.numel() in (0, shape[axis]):
        return []
    values = torch.full((shape[axis],), OUTSIDE).index_fill(0, places, INSIDE)
    return onto_axes([Labels(values, (0,), False, True, reason)], [axis], len(shape))
