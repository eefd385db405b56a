"""Look-ups: embeddings, gathers and advanced indexing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxrebasin.labels import Field, Labels, Value, pinned_value, place, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.movement import chosen_labels, materialised, move_labels
from fxrebasin.passes.rules.registry import Call, pin_everything, rule


@rule("embedding")
def embedding(call: Call) -> Sequence[Value]:
    """Rows are chosen by token ids: they are pinned, the features are free."""
    table = call.pin_axes(call.value("weight"), [0], "row chosen by index")
    ndim = len(call.shape)
    features = call.ledger.reduce(table, {1})
    fields: list[Field] = [place(pick_axes(item, [1]), [ndim - 1], ndim) for item in features]
    for item in pinned_value(call.shape[:-1], f"row chosen by index of {call.op}").fields:
        fields.append(place(item, range(ndim - 1), ndim))
    return [call.join(fields)]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Sequence[Value]:
    """As `embedding`, with rows summed: [rows, features] -> [bags, features]."""
    if call.outputs[3].ndim == 2:
        return pin_everything("the index of a maximum")(call)
    table = call.pin_axes(call.value("weight"), [0], "row chosen by index")
    factors = call.optional("per_sample_weights")
    if factors is not None:
        call.pin_axes(factors, [0], "factor of a row chosen by index")
    reason = f"row chosen by index of {call.op}"
    bags = [positions(2, 0, call.shape[0], reason)] if call.shape[0] > 1 else []
    first = call.join([*call.ledger.reduce(table, {1}), *bags])
    return [first, *(pinned_value(out.shape, reason) for out in call.outputs[1:])]


@rule("index_select")
def index_select(call: Call) -> Sequence[Value]:
    """Positions along one axis, chosen by a constant or by data."""
    dim, index = call.args["dim"], call.constant(call.args["index"])
    value = call.value("self")
    if index is None:
        return [_looked_up(call, value, dim % len(value.shape))]
    return [move_labels(call, value, lambda labels: labels.index_select(dim, index), [dim])]


def _looked_up(call: Call, value: Value, dim: int) -> Value:
    """Positions along an axis are chosen by data."""
    pinned = call.pin_axes(value, [dim], "position chosen by data")
    kept = call.ledger.reduce(pinned, set(range(len(value.shape))) - {dim})
    reason = f"position chosen by data of {call.op}"
    fresh = (
        [positions(len(value.shape), dim, call.shape[dim], reason)] if call.shape[dim] > 1 else []
    )
    return Value(call.shape, (*kept, *fresh))


@rule("gather")
def gather(call: Call) -> Sequence[Value]:
    """Chooses along one axis; along the others source and index are aligned."""
    value, dim = call.value("self"), call.args["dim"] % max(len(call.shape), 1)
    pinned = call.pin_axes(value, [dim], "position chosen by index")
    kept = call.ledger.reduce(pinned, set(range(len(value.shape))) - {dim})
    if value.shape[:dim] + value.shape[dim + 1 :] != call.shape[:dim] + call.shape[dim + 1 :]:
        return pin_everything("gather of a part of the other axes")(call)
    index = call.lookup(call.args["index"])
    return [call.join([*kept, *index.fields])]


@rule("index.Tensor", "_unsafe_index.Tensor")
def index_tensor(call: Call) -> Sequence[Value]:
    """Advanced indexing; run on the labels when the indices are constants."""
    value, indices = call.value("self"), list(call.args["indices"])
    constants = [None if index is None else call.constant(index) for index in indices]
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    if any(constants[axis] is None for axis in axes):
        return _index_by_data(call, value, axes)
    fields: list[Field] = []
    for item in _before_index(call, value, constants):
        if isinstance(item, Labels):
            fields += _indexed(call, item, value, constants)
    return [call.join(fields)]


def _before_index(call: Call, value: Value, indices: Sequence[Tensor | None]) -> list[Field]:
    """The fields as labels; of a table that is read repeatedly, a field for each of its axes."""
    axes = set(range(len(value.shape)))
    given = [index for index in indices if index is not None]
    if len(given) > 1 or given[0].dtype == torch.bool or _distinct(given[0]):
        return materialised(call.ledger, value, axes)
    fields: list[Field] = []
    for item in value.fields:
        if isinstance(item, Labels):
            fields.append(item)
        else:
            fields += [part for axis in item.axes for part in call.ledger.coarsen(item, {axis})]
    return fields


def _distinct(index: Tensor) -> bool:
    return bool(index.unique().numel() == index.numel())


def _indexed(
    call: Call, item: Labels, value: Value, indices: Sequence[Tensor | None]
) -> list[Field]:
    full = torch.ops.aten.index.Tensor(item.values.expand(value.shape), list(indices))
    for axis in range(full.ndim):
        first = full.narrow(axis, 0, 1)
        if bool((full == first).all()):
            full = first
    moved = chosen_labels(call.ledger, full, item)
    return [] if moved is None else [moved]


def _index_by_data(call: Call, value: Value, axes: Sequence[int]) -> list[Value]:
    """The indexed axes are pinned; with one index tensor the others pass through."""
    pinned = call.pin_axes(value, axes, "position chosen by data")
    if len(axes) != 1:
        return list(pin_everything("advanced indexing by data")(call))
    (axis,) = axes
    kept = [other for other in range(len(value.shape)) if other != axis]
    grown = len(call.shape) - len(value.shape) + 1
    target = [other if other < axis else other - 1 + grown for other in kept]
    ndim = len(call.shape)
    fields = [
        place(pick_axes(item, kept), target, ndim) for item in call.ledger.reduce(pinned, kept)
    ]
    reason = f"position chosen by data of {call.op}"
    fresh = [
        positions(ndim, new, call.shape[new], reason)
        for new in range(axis, axis + grown)
        if call.shape[new] > 1
    ]
    return [call.join([*fields, *fresh])]
