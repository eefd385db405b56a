"""The axis algebra: which unit sits at which position of a tensor.

Every tensor of a traced model carries *fields*. A field names, for each position of the tensor,
the unit that the position belongs to; a permutation of units then moves positions. Operators that
only move data are run on the fields themselves, so sums of axes (`cat`, `chunk`), products of axes
(`view`), cases (`unbind` of a stacked axis) and any interleaving of them need no notation of their
own: they are what the arrays of labels look like afterwards.

A label is an int64. Labels >= 0 are units that may turn out to be free. Labels < 0 are rigid
positions that no permutation moves; `passes.fields.labels` says which label means what.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.fields.rows import all_differ


@dataclass(frozen=True)
class Routing:
    """A sorting of rows by data, known by the operator that did it."""

    origin: int


@dataclass(frozen=True, eq=False)
class Labels:
    """A materialised field.

    Attributes:
        values: int64, as many dimensions as the tensor; size 1 along axes where it is constant.
        axes: the axes along which it varies, which are those of a size above 1; at least one.
        injective: no label occurs twice in `values`. It may be False where nobody looked. Two
            injective fields are tied unit by unit; of others the relation is kept, which says as
            much but takes longer to solve.
        rigid: all labels are negative, and no unit of the field can move.
        reason: for rigid fields, why its positions cannot move, if that is known.
    """

    values: Tensor
    axes: tuple[int, ...]
    injective: bool
    rigid: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Elements:
    """The field of a state tensor in which every element is a unit of its own.

    It is never materialised: `view` is an int8 tensor on the meta device whose strides address the
    elements of the (contiguous) state tensor, so that view operators can be run on it.
    """

    state: str
    view: Tensor
    axes: tuple[int, ...]


Field: TypeAlias = Labels | Elements


class Stage(Enum):
    """How far the numbers that tell groups of sorted rows apart were computed."""

    NUMBERS = auto()
    COUNTS = auto()
    ENDS = auto()


@dataclass(frozen=True)
class Grouped:
    """Rows in groups, one after the other: the group's number of each, or their counts or ends.

    Attributes:
        routing: the sorting that put the rows in this order.
        count: how many groups there are.
        stage: what a tensor holds of them.
    """

    routing: Routing
    count: int
    stage: Stage


@dataclass(frozen=True)
class Choice:
    """Which slice of a stack each row was given by data.

    Attributes:
        numbers: equal for two choices if they give the same numbers to the same rows.
        count: how many slices there are.
    """

    numbers: Hashable
    count: int


@dataclass(frozen=True, eq=False)
class Sliced:
    """A tensor each of whose rows was computed with one slice of stacks, chosen by data.

    Attributes:
        choice: the slice of each row.
        axes: along which the rows lie, in their order; all others are of single rows.
        value: what a row holds, for each slice: `[slices, *shape]`, with size 1 along `axes`.
        by_matrix: whether a matrix of each slice had part in it, and not vectors alone.
    """

    choice: Choice
    axes: tuple[int, ...]
    value: Value
    by_matrix: bool


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor as the analysis sees it: its shape and its fields.

    Two positions with the same labels in all fields hold equal values, whatever the parameters.
    `when_read`, if set, has to be called before anything reads the tensor, and gives its value
    then: an operator may give back more than a model looks at. `constant` is set where an operator
    computed one of its outputs from constants alone.

    `names` are units, one for each number that the tensor may hold: the numbers are positions of
    these units on an axis, and change when the units are permuted. Only what looks them up on an
    axis of the same units may read them; anything else has to call `when_read`. `when_named` gives
    the value with its names, for such a reader; no other reader needs them. `grouped` is set on
    tensors that tell groups of sorted rows apart. `sliced` says more than `fields` about rows that
    were given slices of a stack: rules that know of it may read it, all others call `when_read`.
    """

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()
    when_read: Callable[[], Value] | None = None
    when_named: Callable[[], Value] | None = None
    names: Labels | None = None
    grouped: Grouped | None = None
    sliced: Sliced | None = None
    constant: bool = False


def varying_axes(values: Tensor) -> tuple[int, ...]:
    """The axes of size above 1."""
    return tuple(axis for axis, size in enumerate(values.shape) if size > 1)


def labels_of(values: Tensor, like: Labels | None = None, injective: bool = False) -> Labels | None:
    """Wrap label values as a field; None when they vary along no axis and hence say nothing.

    A part of a field may be constant where the field is not, and rigid where that is not.
    """
    if not injective:
        values = squeeze_constant(values, varying_axes(values))
    axes = varying_axes(values)
    if not axes or 0 in values.shape:
        return None
    rigid = (like is not None and like.rigid) or _all_below_zero(values)
    return Labels(values, axes, injective, rigid, "" if like is None else like.reason)


def field_of(values: Tensor, reason: str) -> Labels:
    """A field of labels, of which everything is found out by looking.

    Args:
        values: the labels; they may be the same all along an axis.
        reason: why positions cannot move, if none of them can.
    """
    values = squeeze_constant(values, range(values.ndim))
    rigid = bool((values < 0).all())
    injective = all_differ(values.numpy())
    return Labels(values, varying_axes(values), injective, rigid, reason if rigid else "")


def free_labels(values: Tensor, like: Labels | None = None) -> Labels | None:
    """Labels from any movement of a field, with `injective` decided by looking."""
    return labels_of(values, like, injective=all_differ(values.reshape(-1).numpy()))


def identity(values: Tensor) -> tuple[object, ...]:
    """Equal for two views of the same labels; valid while one of them is alive."""
    return (
        values.data_ptr(),
        values.ndim,
        tuple(
            (axis, size, stride)
            for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True))
            if size > 1
        ),
    )


def elements_of(state: str, view: Tensor) -> Elements | None:
    """The elements that a view of a state tensor addresses; None if they are one, or none."""
    if 0 in view.shape:
        return None
    axes = tuple(
        axis
        for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True))
        if size > 1 and stride != 0
    )
    return Elements(state, view, axes) if axes else None


@lru_cache(maxsize=4096)
def _iota(size: int) -> Tensor:
    return rigid_labels(torch.arange(size))


def positions(ndim: int, axis: int, size: int, reason: str) -> Labels:
    """The rigid field that pins every position along one axis."""
    shape = [1] * ndim
    shape[axis] = size
    return Labels(_iota(size).view(shape), (axis,), injective=True, rigid=True, reason=reason)


def pinned_value(shape: Sequence[int], reason: str) -> Value:
    """A tensor none of whose axes can be permuted."""
    size = tuple(shape)
    axes = [axis for axis, n in enumerate(size) if n > 1 and 0 not in size]
    return Value(size, tuple(positions(len(size), axis, size[axis], reason) for axis in axes))


def onto_axes(fields: Iterable[Field], target: Sequence[int], ndim: int) -> list[Field]:
    """Fields of a tensor whose axes become the given axes of one with `ndim` dimensions."""
    return [_onto_axes(item, target, ndim) for item in fields]


def _onto_axes(field: Field, target: Sequence[int], ndim: int) -> Field:
    order = sorted(range(len(target)), key=lambda axis: target[axis])
    wanted = [target[axis] for axis in order]
    if isinstance(field, Labels):
        shape = [1] * ndim
        for axis, position in zip(order, wanted, strict=True):
            shape[position] = field.values.shape[axis]
        values = field.values.permute(order).reshape(shape)
        axes = tuple(sorted(target[axis] for axis in field.axes))
        return replace(field, values=values, axes=axes)
    view = field.view.permute(order)
    for position in range(ndim):
        if position not in wanted:
            view = view.unsqueeze(position)
    return Elements(field.state, view, tuple(sorted(target[axis] for axis in field.axes)))


def reshape_groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split a reshape into the smallest groups of axes that are reshaped among themselves."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if (left < right and i < len(before)) or j >= len(after):
                left *= before[i]
                i += 1
            else:
                right *= after[j]
                j += 1
        groups.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return groups


def reshape_labels(field: Labels, before: Sequence[int], after: Sequence[int]) -> Labels | None:
    """Run a reshape on a field, expanding only the groups of axes it varies along."""
    expanded, shape = [], []
    recheck = []
    for axes_in, axes_out in reshape_groups(before, after):
        if any(axis in field.axes for axis in axes_in):
            expanded += [before[axis] for axis in axes_in]
            shape += [after[axis] for axis in axes_out]
            if len(axes_in) != 1 or len(axes_out) != 1:
                recheck += list(axes_out)
        else:
            expanded += [1] * len(axes_in)
            shape += [1] * len(axes_out)
    values = squeeze_constant(field.values.expand(expanded).reshape(shape), recheck)
    if values.numel() == field.values.numel():
        return labels_of(values, field, field.injective)
    more = values.numel() > field.values.numel()  # then some occur twice
    return labels_of(values, field, not more and all_differ(values.numpy()))


_HELD = 64
"""So much more memory than its own may a field keep, that of the labels which it was cut out of."""


def _all_below_zero(values: Tensor) -> bool:
    """Whether all numbers are; usually the first shows that they are not."""
    return int(values[(0,) * values.ndim]) < 0 and int(values.max()) < 0


def squeeze_constant(values: Tensor, axes: Iterable[int]) -> Tensor:
    """Reduce to size 1 those of the given axes along which the labels do not vary."""
    for axis in axes:
        if values.shape[axis] > 1:
            first = values.narrow(axis, 0, 1)
            if values.stride(axis) == 0 or _all_as(first, values, axis):
                values = first
    held = values.untyped_storage().nbytes()
    return values.clone() if held > _HELD * values.nbytes else values


def _all_as(first: Tensor, values: Tensor, axis: int) -> bool:
    """Whether all along an axis is as at its first position; usually the second shows it."""
    return torch.equal(values.narrow(axis, 1, 1), first) and bool((values == first).all())
