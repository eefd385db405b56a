"""Look-ups: embeddings, gathers and advanced indexing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import (
    Choice,
    Field,
    Labels,
    Sliced,
    Stage,
    Value,
    onto_axes,
    pinned_value,
    positions,
    squeeze_constant,
)
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.fields.slices import differ_by_slice, one_row
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.numbers import looked_up, numbers_in
from fxrebasin.passes.rules.registry import pin_everything, rule

_BY_DATA = "position chosen by data"
MASKS = (torch.bool, torch.uint8)
"""Types of indices that say for each position whether it is chosen."""


_ROWS, _BAGS = pattern("v f, ... -> ... f"), pattern("v f -> !b f")


@rule("embedding")
def embedding(call: Call) -> Sequence[Value]:
    """Rows are chosen by numbers, which pins them unless they name units; features are free."""
    indices, what = call.args["indices"], "row chosen by index"
    table = looked_up(call, call.value("weight"), 0, indices, what)
    numbers = _numbers(call, indices, what)

    def read() -> Value:
        return call.follow(_ROWS, table, numbers)

    return [_or_slices(call, table, 0, indices, read)]


@rule("embedding_renorm_", "embedding_renorm")
def embedding_renorm(call: Call) -> Sequence[Value]:
    """Rows that are chosen by numbers are divided by their norm, where that is too large.

    So they differ from the others, also where all rows of the table are the same.
    """
    reason = "row chosen by index"
    call.pin_axes(call.value("indices"), range(call.args["indices"].ndim), reason)
    table = call.pin_axes(call.value("self"), [0], reason)
    rows = [item for item in pinned_value(table.shape, reason).fields if item.axes == (0,)]
    return [call.join([*call.with_statistics(table, {0}), *rows])]


def _numbers(call: Call, index: Tensor, what: str) -> Value:
    """What tells apart the positions of an index.

    Equal numbers choose equal rows. An index that was computed from units is permuted with them,
    and so is what it chooses.
    """
    shape, reason = tuple(index.shape), f"{what} of {call.op}"
    fields: list[Field] = []
    for item in numbers_in(call, index).fields:
        if isinstance(item, Labels) and item.rigid and item.injective:
            fields += [positions(len(shape), axis, shape[axis], reason) for axis in item.axes]
        else:
            fields.append(item)
    return Value(shape, tuple(fields))


def _chosen(call: Call, index: Tensor, target: Sequence[int], what: str) -> list[Field]:
    """As `_numbers`, at the axes of the output that those of the index become."""
    return onto_axes(_numbers(call, index, what).fields, target, call.rank)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> Sequence[Value]:
    """As `embedding`, with rows summed, or the largest: [rows, features] -> [bags, features]."""
    indices, what = call.args["indices"], "row chosen by index"
    says_which = call.outputs[3].ndim == 2  # by feature, the row that the largest is from
    if says_which or call.args["padding_idx"] >= 0:  # or one number stands for nothing
        call.lookup(indices)
    table = looked_up(call, call.value("weight"), 0, indices, what)
    others = (call.optional(name) for name in ("offsets", "per_sample_weights"))
    for given in (numbers_in(call, indices), *others):
        if given is not None:
            call.pin_axes(given, [0], "which rows belong to which bag")
    first, reason = call.follow(_BAGS, table, reason=what), f"{what} of {call.op}"
    others_of = [pinned_value(out.shape, reason) for out in call.outputs[1:3]]
    return [first, *others_of, first if says_which else pinned_value(call.outputs[3].shape, reason)]


@rule("index_select")
def index_select(call: Call) -> Sequence[Value]:
    """Positions along one axis, chosen by a constant or by data."""
    value, index = call.value("self"), call.args["index"]
    dim, constant = call.args["dim"] % max(len(value.shape), 1), call.constant(index)
    if constant is None:
        return [_looked_up(call, value, dim, index)]
    return [call.move(value, lambda labels: labels.index_select(dim, constant), [dim])]


def _looked_up(call: Call, value: Value, axis: int, index: Tensor) -> Value:
    """Positions along an axis are chosen by data: the index's axes take its place.

    A mask chooses from several axes at once, and deals out what it chose in the order of positions.
    """
    if index.dtype in MASKS:
        covered = range(axis, axis + index.ndim)
        fields = _around(call, call.pin_axes(value, covered, _BY_DATA), covered)
        call.pin_axes(call.lookup(index), range(index.ndim), _BY_DATA)
        return call.join([*fields, *call.positions([axis], _BY_DATA)])
    met = looked_up(call, value, axis, index, _BY_DATA)
    numbers = _chosen(call, index, range(axis, axis + index.ndim), _BY_DATA)

    def read() -> Value:
        return call.join([*_around(call, met, range(axis, axis + 1)), *numbers])

    return _or_slices(call, met, axis, index, read)


def _or_slices(
    call: Call, stack: Value, axis: int, index: Tensor, read: Callable[[], Value]
) -> Value:
    """Slices of a stack that data chose: what they hold may have another order in each.

    Args:
        call: of the look-up.
        stack: what is looked up in, where its axis met the numbers.
        axis: of the stack.
        index: the numbers. Their axes take the place of that of the stack, unless they are as many
            as the stack's, and repeated along all others.
        read: gives the output where nothing is known of the numbers.
    """
    numbers = call.numbers(index) if differ_by_slice(stack, axis) else None
    known = numbers_in(call, index)
    held = all(isinstance(item, Labels) and item.rigid for item in known.fields)
    several = tuple(at for at, size in enumerate(index.shape) if size > 1)
    if numbers is None or not numbers.axes or not held:
        return read()
    if call.rank == len(stack.shape) + index.ndim - 1 and numbers.axes == several:
        rows, width = tuple(axis + at for at in several), index.ndim
    elif call.rank == len(stack.shape) == index.ndim and numbers.axes == (axis,):
        rows, width = (axis,), 1
    else:
        return read()
    target = [1 + at if at < axis else at + width for at in range(len(stack.shape))]
    target[axis] = 0
    fields = onto_axes(stack.fields, target, 1 + call.rank)
    count = stack.shape[axis]
    value = Value(one_row(call.shape, rows, count), tuple(fields))
    key, grouped = numbers.key, known.grouped
    if grouped is not None and grouped.count == count and grouped.stage is Stage.NUMBERS:
        key = grouped.routing
    sliced = Sliced(Choice(key, count), rows, value, False)
    return call.deferred(sliced, call.shape, read)


def _around(call: Call, value: Value, covered: range) -> list[Field]:
    """The fields along the axes before and after those that were chosen from."""
    kept = [axis for axis in range(len(value.shape)) if axis not in covered]
    shift = call.rank - len(value.shape)
    target = [axis if axis < covered.start else axis + shift for axis in kept]
    return onto_axes(call.reduced(value, kept), target, call.rank)


@rule("gather")
def gather(call: Call) -> Sequence[Value]:
    """Chooses along one axis; along the others source and index are aligned."""
    value, dim = call.value("self"), call.args["dim"] % max(len(call.shape), 1)
    if value.shape[:dim] + value.shape[dim + 1 :] != call.shape[:dim] + call.shape[dim + 1 :]:
        return pin_everything("gather of a part of the other axes")(call)
    index = call.args["index"]
    met = looked_up(call, value, dim, index, "position chosen by index")
    numbers = numbers_in(call, index).fields

    def read() -> Value:
        kept = call.reduce(met, set(range(len(value.shape))) - {dim})
        return call.join([*kept, *numbers])

    return [_or_slices(call, met, dim, index, read)]


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
        fields += _indexed(call, item, value, constants)
    return [call.join(fields)]


def _before_index(call: Call, value: Value, indices: Sequence[Tensor | None]) -> list[Labels]:
    """The fields as labels; of a table that is read repeatedly, a field for each of its axes."""
    given = [index for index in indices if index is not None]
    repeated = len(given) == 1 and given[0].dtype not in MASKS and not _distinct(given[0])
    fields: list[Labels] = []
    for item in value.fields:
        if isinstance(item, Labels):
            fields.append(item)
        else:
            fields += call.by_axis(item) if repeated else call.separate(item)
    return fields


def _distinct(index: Tensor) -> bool:
    return bool(index.unique().numel() == index.numel())


def _indexed(
    call: Call, item: Labels, value: Value, indices: Sequence[Tensor | None]
) -> list[Labels]:
    sizes = [
        size if index is None else whole
        for size, whole, index in zip_longest(item.values.shape, value.shape, indices)
    ]
    found = torch.ops.aten.index.Tensor(item.values.expand(sizes), list(indices))
    return call.chosen(squeeze_constant(found, range(found.ndim)), item)


def _index_by_data(call: Call, value: Value, axes: Sequence[int]) -> list[Value]:
    """Axes that are not indexed pass through."""
    given = {axis: call.args["indices"][axis] for axis in axes}
    if len(axes) == 1:
        return [_looked_up(call, value, axes[0], given[axes[0]])]
    if any(index.dtype in MASKS for index in given.values()):
        return list(pin_everything("several indices, one of them a mask")(call))
    return [_looked_up_together(call, value, given)]


def _looked_up_together(call: Call, value: Value, given: Mapping[int, Tensor]) -> Value:
    """Positions along several axes are chosen in pairs, triples and so on.

    The axes of the indices take the place of those that they index, where these are neighbours, and
    come first otherwise.
    """
    met = value
    for axis, index in given.items():
        met = looked_up(call, met, axis, index, _BY_DATA)
    kept = [axis for axis in range(len(value.shape)) if axis not in given]
    ndim, rank = len(call.shape), max(index.ndim for index in given.values())
    inside = result_axes(list(given), rank)
    target = [axis for axis in range(ndim) if axis not in inside]
    fields = onto_axes(call.reduced(met, kept), target, ndim)
    for index in given.values():
        fields += _chosen(call, index, inside[rank - index.ndim :], _BY_DATA)
    return call.join(fields)


def result_axes(axes: Sequence[int], rank: int) -> range:
    """Where the axes of index tensors go in what they choose.

    Args:
        axes: that are indexed, in order.
        rank: of the indices, broadcast together.
    """
    neighbours = axes[-1] - axes[0] == len(axes) - 1
    start = axes[0] if neighbours else 0
    return range(start, start + rank)
