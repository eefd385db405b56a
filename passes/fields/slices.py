"""Rows that were each computed with one slice of a stack, which data chose for them.

A mixture of experts may look up the matrices of a row's expert and multiply the row with them.
Every expert has an order of units of its own then, as long as nothing looks at units of several
rows. So the rows are followed as one row of each expert: an axis of slices comes first, and those
of the rows have size 1. Rows with the same numbers had the same slice; of all others, any slice may
meet any row. What reads such a tensor in another way sees rows of unknown slices, in which units
are in the same order for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import (
    Field,
    Labels,
    Sliced,
    Value,
    onto_axes,
    pinned_value,
    positions,
)
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import pick_axes, view_fields
from fxrebasin.passes.fields.reducing import reduce
from fxrebasin.passes.fields.reshaping import reshape_fields

_ANY_ROW = "row of a slice chosen by data"


@dataclass(frozen=True)
class Numbers:
    """The numbers in a tensor, where they are known to be those of others.

    Attributes:
        key: equal for tensors that hold the same numbers in the same order.
        axes: along which they lie; along all others they are repeated.
    """

    key: Hashable
    axes: tuple[int, ...]


def has_matrices(sliced: Sliced) -> bool:
    """Whether slices have units along several axes, or were multiplied with such."""
    return sliced.by_matrix or any(
        0 in item.axes and len(item.axes) > 2 for item in sliced.value.fields if _is_free(item)
    )


def differ_by_slice(value: Value, axis: int) -> bool:
    """Whether units of a stack may have another order in each slice along an axis."""
    return any(axis in item.axes and len(item.axes) > 1 for item in value.fields if _is_free(item))


def _is_free(item: Field) -> bool:
    return not (isinstance(item, Labels) and item.rigid)


def deferred(
    ledger: Ledger, sliced: Sliced, shape: Sequence[int], read: Callable[[], Value] | None = None
) -> Value:
    """The value of a tensor of which it is not known yet whether it is read row by row.

    Args:
        ledger: where constraints are recorded.
        sliced: what rows hold.
        shape: of the tensor.
        read: gives the value for all other readers, by default that of rows of unknown slices.
    """
    where = ledger.origin

    def found() -> Value:
        with ledger.at(where):
            return of_unknown_slices(ledger, sliced, shape) if read is None else read()

    return Value(tuple(shape), when_read=found, sliced=sliced)


def of_unknown_slices(ledger: Ledger, sliced: Sliced, shape: Sequence[int]) -> Value:
    """The value of rows that may be of any slice: their units are in the same order for all."""
    kept = range(1, 1 + len(shape))
    fields = [pick_axes(item, kept) for item in reduce(ledger, sliced.value, kept)]
    rows = [positions(len(shape), axis, shape[axis], _ANY_ROW) for axis in sliced.axes]
    return Value(tuple(shape), join(ledger, [*fields, *rows]))


def of_any_row(ledger: Ledger, value: Value, rows: Sequence[int], rank: int) -> Value:
    """What meets each slice of a tensor without slices, broadcast to a rank.

    Any row may meet any slice: what tells rows apart is given up.

    Args:
        ledger: where constraints are recorded.
        value: of the tensor.
        rows: the axes of rows, counted after the broadcast.
        rank: how many axes there are then.
    """
    shift = rank - len(value.shape)
    mine = {axis - shift for axis in rows if axis >= shift and value.shape[axis - shift] > 1}
    held = [item for item in pinned_value(value.shape, _ANY_ROW).fields if item.axes[0] in mine]
    touched = {axis for item in value.fields for axis in item.axes} & mine
    met = [item for item in held if item.axes[0] in touched]
    fields = join(ledger, [*value.fields, *met]) if met else value.fields
    kept = set(range(len(value.shape))) - mine
    left = reduce(ledger, Value(value.shape, tuple(fields)), kept)
    size = [1 if axis in mine else n for axis, n in enumerate(value.shape)]
    placed = onto_axes(left, range(1 + shift, 1 + rank), 1 + rank)
    return Value((*[1] * (1 + shift), *size), tuple(placed))


def broadcast_slices(sliced: Sliced, rank: int) -> Value:
    """What rows hold for each slice, broadcast to a rank."""
    count, *size = sliced.value.shape
    shift = rank - len(size)
    target = [0, *range(1 + shift, 1 + rank)]
    placed = onto_axes(sliced.value.fields, target, 1 + rank)
    return Value((count, *[1] * shift, *size), tuple(placed))


def one_row(shape: Sequence[int], rows: Sequence[int], count: int) -> tuple[int, ...]:
    """The shape of one row for each slice."""
    return (count, *(1 if axis in rows else size for axis, size in enumerate(shape)))


def reshape_slices(
    ledger: Ledger, sliced: Sliced, before: Sequence[int], after: Sequence[int]
) -> Sliced | None:
    """Rows in another shape; None if they are merged with other axes."""
    try:
        rows = rows_in(_probe(before, sliced.axes).view(tuple(after)))
    except RuntimeError:
        return None
    if rows is None:
        return None
    count = sliced.choice.count
    shapes = one_row(before, sliced.axes, count), one_row(after, rows, count)
    fields = reshape_fields(ledger, sliced.value.fields, *shapes)
    return Sliced(sliced.choice, rows, Value(shapes[1], tuple(fields)), has_matrices(sliced))


def view_slices(
    ledger: Ledger, sliced: Sliced, before: Sequence[int], move: Callable[[Tensor], Tensor]
) -> Sliced | None:
    """Rows after an operator that only changes strides; None if it does anything to rows.

    Args:
        ledger: where constraints are recorded.
        sliced: what rows hold.
        before: the shape of the operand.
        move: the operator, which is run on tensors without data.
    """
    seen = move(_probe(before, sliced.axes))
    rows, count = rows_in(seen), sliced.choice.count
    if rows is None or math.prod(seen.shape[axis] for axis in rows) != _rows(sliced, before):
        return None
    found = rows

    def of_each(labels: Tensor) -> Tensor:
        whole = labels.expand(count, *before)
        step, *steps = whole.stride()
        moved = move(torch.empty_strided(tuple(before), steps, dtype=torch.int8, device="meta"))
        size = [1 if axis in found else n for axis, n in enumerate(moved.shape)]
        start = whole.storage_offset() + moved.storage_offset()
        return whole.as_strided([count, *size], [step, *moved.stride()], start)

    (fields,) = view_fields(ledger, sliced.value, of_each, 1)
    value = Value(one_row(seen.shape, rows, count), fields)
    return Sliced(sliced.choice, rows, value, has_matrices(sliced))


def rows_in(probe: Tensor) -> tuple[int, ...] | None:
    """The axes of a view along which numbers lie one after the other; None if some are left out.

    Args:
        probe: a view of as many numbers, expanded along all other axes.
    """
    axes = tuple(
        axis
        for axis, (size, step) in enumerate(zip(probe.shape, probe.stride(), strict=True))
        if size > 1 and step
    )
    steps = [math.prod(probe.shape[axis] for axis in axes[at + 1 :]) for at in range(len(axes))]
    in_order = steps == [probe.stride(axis) for axis in axes]
    return axes if in_order and not probe.storage_offset() else None


def _rows(sliced: Sliced, shape: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in sliced.axes)


def _probe(shape: Sequence[int], rows: Sequence[int]) -> Tensor:
    """A tensor without data, whose strides number the rows and are 0 along all other axes."""
    steps, step = [0] * len(shape), 1
    for axis in reversed(rows):
        steps[axis] = step
        step *= shape[axis]
    return torch.empty_strided(tuple(shape), steps, dtype=torch.int8, device="meta")
