"""Rows of integers: numbering them, telling them apart, hashing them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
Table = npt.NDArray[np.int64]
"""A relation: one row per distinct tuple of labels, one column per field."""

_Whole = TypeVar("_Whole", np.int64, np.uint64)

_MOST = 1 << 62


def _joint_code(columns: Sequence[Ints]) -> tuple[Ints, int]:
    """One number per row, equal for equal rows, and a bound that all numbers are below."""
    code, span = np.zeros(columns[0].size, dtype=np.int64), 1
    for column in columns:
        if not column.size:
            continue
        low = int(column.min())
        width = int(column.max()) - low + 1
        values = column - low
        if span * width >= _MOST and span > 1:
            code = np.unique(code, return_inverse=True)[1].reshape(-1)
            span = int(code.max()) + 1
        if span * width >= _MOST:
            values = np.unique(values, return_inverse=True)[1].reshape(-1)
            width = int(values.max()) + 1
        if span > 1:
            code *= width
            code += values
        elif width > 1:
            code = values
        span *= width
    return code, span


def ascends(values: npt.NDArray[_Whole]) -> bool:
    """Whether the numbers of a flat array ascend, none of them twice; the ends often tell."""
    if values.size < 2:
        return True
    if values[0] >= values[1] or values[0] >= values[-1]:
        return False
    return bool((values[1:] > values[:-1]).all())


def memory(values: npt.NDArray[_Whole]) -> tuple[object, ...]:
    """Equal for arrays that are the same part of memory; valid while one of them is alive."""
    return (values.ctypes.data, values.shape, values.strides)


def row_codes(columns: Sequence[Ints]) -> Ints:
    """Number the rows of aligned columns so that equal rows get equal numbers, starting at 0."""
    if any(ascends(column) for column in columns):
        return np.arange(columns[0].size)
    code, span = _joint_code(columns)
    if _is_dense(code, span):
        present = np.zeros(span, dtype=np.bool_)
        present[code] = True
        return np.asarray((np.cumsum(present) - 1)[code], dtype=np.int64)
    return numbers_of(code)


def numbers_of(values: npt.NDArray[_Whole]) -> Ints:
    """Equal numbers, starting at 0, for equal values of a flat array; runs of one count once."""
    differ = np.ones(values.size, dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=differ[1:])
    starts = np.flatnonzero(differ)
    inverse = np.unique(values[starts], return_inverse=True)[1].reshape(-1)
    return np.repeat(inverse, np.diff(starts, append=values.size)).astype(np.int64, copy=False)


def from_last_to_first(codes: Ints) -> Ints:
    """Numbers from 0 for those of a flat array; the one that occurs first gets the greatest."""
    first, inverse = np.unique(codes, return_index=True, return_inverse=True)[1:]
    rank = np.empty_like(first)
    rank[np.argsort(-first)] = np.arange(first.size)
    return np.asarray(rank[inverse.reshape(-1)])


def count_rows(columns: Sequence[Ints]) -> int:
    """How many different rows aligned columns have."""
    if any(ascends(column) for column in columns):
        return columns[0].size
    code, span = _joint_code(columns)
    if _is_dense(code, span):
        present = np.zeros(span, dtype=np.bool_)
        present[code] = True
        return int(present.sum())
    return int(distinct(code).size)


def determines(first: Ints, second: Ints) -> bool:
    """Whether positions with one number in a flat array have one number in another."""
    if first.size < 2 or ascends(first):
        return True
    low = int(first.min())
    code, span = first - low, int(first.max()) - low + 1
    if not _is_dense(code, span):
        code = numbers_of(code)
        span = int(code.max()) + 1
    last = np.empty(span, dtype=np.int64)
    last[code] = second
    return bool((last[code] == second).all())


def distinct(values: npt.NDArray[_Whole]) -> npt.NDArray[_Whole]:
    """The distinct numbers in an array of any shape, sorted.

    `np.unique` hashes whole numbers, which takes up to fifty times as long on regular ones.
    """
    if ascends(values.reshape(-1)):
        return values.reshape(-1).copy()
    ordered = np.sort(values, axis=None)
    first = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def thinned(columns: Sequence[Ints], axes: Collection[int] | None = None) -> list[Ints]:
    """Labels that meet on a tensor, without positions along an axis at which all are as at others.

    A relation is a set of tuples, so nothing is lost; what is left grows with the different tokens
    or pixels that there are, and not with the square of all.

    Args:
        columns: labels over the axes of the tensor, with size 1 where they do not vary.
        axes: along which positions may go; all if not given.
    """
    found = list(columns)
    for axis in range(found[0].ndim) if axes is None else axes:
        varying = [column for column in found if column.shape[axis] > 1]
        if not varying:
            continue
        slices = slice_codes(varying, axis)
        first = np.unique(slices, return_index=True)[1]
        if first.size < slices.size:
            kept = np.sort(first)
            found = [item.take(kept, axis) if item.shape[axis] > 1 else item for item in found]
    return found


def slice_codes(columns: Sequence[Ints], axis: int) -> Ints:
    """A number for each position along an axis, equal where all columns are equal there.

    Args:
        columns: labels that vary along the axis.
        axis: of all of them.
    """
    return row_codes([_slices(column, axis) for column in columns])


def _slices(column: Ints, axis: int) -> Ints:
    """A number for each position along an axis, equal where everything there is equal.

    Neighbours are compared first: tokens and pixels are alike in long runs, of which one is sorted.
    """
    moved = np.moveaxis(column, axis, 0)
    if moved.size == len(moved):
        return moved.reshape(-1)
    starts = run_starts(moved, 0)
    rows = np.ascontiguousarray(moved[starts]).reshape(starts.size, -1)
    whole = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    numbers = np.unique(whole, return_inverse=True)[1].reshape(-1)
    return np.repeat(numbers, np.diff(starts, append=len(moved))).astype(np.int64, copy=False)


def run_starts(column: Ints, axis: int) -> Ints:
    """Where along an axis runs of equal slices start."""
    moved = np.moveaxis(column, axis, 0)
    differ = np.ones(len(moved), dtype=np.bool_)
    differ[1:] = (moved[1:] != moved[:-1]).any(axis=tuple(range(1, moved.ndim)))
    return np.flatnonzero(differ)


def alike(columns: Sequence[Ints]) -> list[Ints]:
    """The positions of each tuple that aligned columns have."""
    if all((column == column[0]).all() for column in columns):
        return [np.arange(columns[0].size)]
    code = row_codes(columns)
    return np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])


def all_differ(values: Ints) -> bool:
    """Whether no number occurs twice in an array of any shape."""
    if values.size and int(values.max()) - int(values.min()) < values.size - 1:
        return False
    return count_rows([values.reshape(-1)]) == values.size


def distinct_rows(columns: Sequence[Ints]) -> Table:
    """The distinct tuples of aligned columns, sorted."""
    if ascends(columns[0]):
        return np.stack(columns).T
    code, span = _joint_code(columns)
    if _is_dense(code, span):
        at = np.full(span, -1, dtype=np.int64)
        at[code] = np.arange(code.size)
        first = at[at >= 0]
    else:
        first = np.unique(code, return_index=True)[1]
    return np.stack([column[first] for column in columns]).T


def _is_dense(code: Ints, span: int) -> bool:
    """Whether a table of all numbers costs less than sorting those that occur."""
    return span <= 8 * code.size + 64


def mix(values: npt.NDArray[np.generic], salt: int | Ints) -> Hashes:
    """The finaliser of splitmix64, salted; of an array, where numpy lets integers overflow.

    Args:
        values: integers.
        salt: one for all, or one for each.
    """
    z: Hashes = values.astype(np.uint64)
    if isinstance(salt, int):
        z += np.uint64((salt * _STEP + _START) & 0xFFFFFFFFFFFFFFFF)
    else:
        z += salt.astype(np.uint64) * np.uint64(_STEP) + np.uint64(_START)
    z ^= z >> _U30
    z *= _FIRST
    z ^= z >> _U27
    z *= _SECOND
    z ^= z >> _U31
    return z


_STEP, _START = 0x9E3779B97F4A7C15, 0x632BE59BD9B4E019
_U30, _U27, _U31 = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def multiset_hashes(rows: Ints, times: Ints) -> Hashes:
    """One number per row, equal for rows that hold the same numbers in any order.

    Args:
        rows: of numbers.
        times: how often each number is there, by column or by row and column.
    """
    return np.asarray((mix(rows, 9) * times.astype(np.uint64)).sum(axis=1, dtype=np.uint64))
