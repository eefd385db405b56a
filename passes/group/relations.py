"""Make recorded relations small: the tuples of free labels, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from fxrebasin.passes.fields.constraints import Edge
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import (
    Hashes,
    Ints,
    all_differ,
    count_rows,
    distinct_rows,
    mix,
    row_codes,
    slice_codes,
    thinned,
)

_Met = TypeVar("_Met")


def maximal(relations: Mapping[tuple[object, ...], _Met]) -> list[_Met]:
    """The relations without those that are part of another one, and follow from it.

    Args:
        relations: by what identifies each of their columns.
    """
    kept: dict[frozenset[object], _Met] = {}
    holding: dict[object, list[frozenset[object]]] = {}
    for names in sorted(relations, key=len, reverse=True):
        columns = frozenset(names)
        if not any(columns <= other for other in holding.get(names[0], ())):
            kept[columns] = relations[names]
            for name in columns:
                holding.setdefault(name, []).append(columns)
    return list(kept.values())


def compact(columns: Sequence[Ints]) -> list[list[Ints]]:
    """Relations, as aligned columns, that say the same as labels that meet on one tensor.

    Rigid labels are summed up along the axes that no free label varies along, and free ones that
    rigid ones determine are told apart from the others, before anything gets the tensor's size.

    Args:
        columns: labels over the axes of the tensor, with size 1 where they do not vary.
    """
    free = [column for column in columns if (column >= 0).any()]
    rigid = [column for column in columns if not (column >= 0).any()]
    if not rigid or not free:
        return [_flat(columns)]
    told_apart = _told_apart(rigid)
    aside = [column for column in free if told_apart.issuperset(_axes(column))]
    free = [column for column in free if not told_apart.issuperset(_axes(column))]
    found = [compressed(_flat([column, *_within(rigid, column)])) for column in aside]
    return [*found, _joined(free, rigid)] if free else found


def with_blocks(ledger: Ledger, columns: Sequence[Ints]) -> list[Ints]:
    """Labels that meet on a tensor, with those of a grid replaced by labels of blocks.

    Where only one field varies along some axes, other fields tell apart all positions of the rest,
    and the labels that the field has at two of these are the same or have nothing in common, it
    says no more than that these labels move inside a block, and which block is where. A grouped
    convolution has such a field for its inputs.
    """
    found = list(columns)
    for index, column in enumerate(columns):
        others = [*columns[:index], *columns[index + 1 :]]
        shared = {axis for other in others for axis in _axes(other)}
        own = [axis for axis in _axes(column) if axis not in shared]
        outer = [axis for axis in _axes(column) if axis in shared]
        if own and outer and (column >= 0).all() and _tell_apart(others, column, outer):
            found[index] = _blocks(ledger, column, outer, own)
    return found


def _tell_apart(columns: Sequence[Ints], like: Ints, axes: Sequence[int]) -> bool:
    """Whether the fields that vary along some axes only have another tuple at each position."""
    along = [column for column in columns if set(axes).issuperset(_axes(column))]
    shape = [size if axis in axes else 1 for axis, size in enumerate(like.shape)]
    flat = [np.broadcast_to(column, shape).reshape(-1) for column in along]
    return bool(flat) and count_rows(flat) == math.prod(shape)


def _blocks(ledger: Ledger, column: Ints, outer: Sequence[int], own: Sequence[int]) -> Ints:
    count = math.prod(column.shape[axis] for axis in outer)
    rest = [axis for axis in range(column.ndim) if axis not in (*outer, *own)]
    rows = column.transpose([*outer, *own, *rest]).reshape(count, -1)
    row_of = row_codes([rows[:, 0]])
    first = np.zeros(int(row_of.max()) + 1, np.int64)
    first[row_of] = np.arange(count)
    sets = rows[first]
    if not all_differ(sets) or not np.array_equal(sets[row_of], rows):
        return column
    blocks = ledger.fresh(len(sets)).numpy()
    ledger.edges.append(Edge(sets.reshape(-1), np.repeat(blocks, sets.shape[1])))
    shape = [size if axis in outer else 1 for axis, size in enumerate(column.shape)]
    return blocks[row_of].reshape(shape)


def _joined(free: Sequence[Ints], rigid: Sequence[Ints]) -> list[Ints]:
    for axis in range(free[0].ndim):
        free, rigid = _in_runs(free, rigid, axis)
    axes = {axis for column in free for axis in _axes(column)}
    summed = [_summed(part, axes) for part in _parts(rigid, axes)]
    small = _flat([*free, *(codes for codes, _ in summed)])
    if all(apart for _, apart in summed) or _each_once(small, len(free)):
        return compressed(small)
    return compressed(_flat([*free, *rigid]))


def _in_runs(
    free: Sequence[Ints], rigid: Sequence[Ints], axis: int
) -> tuple[Sequence[Ints], Sequence[Ints]]:
    """One position of each set of positions along an axis that only rigid labels tell apart.

    A permutation has to map what is at each rigid label onto itself. Where the labels of one set
    are at no position of another, that says the same as one label for each set: images have
    thousands of patches, of which all but a few are alike.
    """
    own = [column for column in rigid if _axes(column) == [axis]]
    rest = [column for column in rigid if _axes(column) != [axis]]
    varying = [column for column in (*free, *rest) if column.shape[axis] > 1]
    if not own or not varying:
        return free, rigid
    sets = slice_codes(varying, axis)
    first = np.unique(sets, return_index=True)[1]
    tags = row_codes([column.reshape(-1) for column in own])
    if first.size == sets.size or count_rows([sets, tags]) > count_rows([tags]):
        return free, rigid
    shape = [1] * own[0].ndim
    shape[axis] = first.size
    codes = rigid_labels(np.arange(first.size)).reshape(shape)
    return _at(free, first, axis), [*_at(rest, first, axis), codes]


def _at(columns: Iterable[Ints], positions: Ints, axis: int) -> list[Ints]:
    """Labels at some positions along an axis, where they vary along it."""
    return [item.take(positions, axis) if item.shape[axis] > 1 else item for item in columns]


def _told_apart(rigid: Sequence[Ints]) -> set[int]:
    """The axes whose positions rigid labels tell apart, each by itself."""
    found = set()
    for axis in {axis for column in rigid for axis in _axes(column)}:
        along = [column.reshape(-1) for column in rigid if _axes(column) == [axis]]
        if along and count_rows(along) == along[0].size:
            found.add(axis)
    return found


def _within(columns: Iterable[Ints], other: Ints) -> list[Ints]:
    """The columns that vary along no other axes than the given one."""
    axes = set(_axes(other))
    return [column for column in columns if axes.issuperset(_axes(column))]


def compressed(columns: list[Ints]) -> list[Ints]:
    """Distinct tuples of free labels, and one code for the set of rigid ones that each meets.

    A permutation maps the relation onto itself exactly if it maps free tuples to free tuples that
    occur with the same rigid labels.
    """
    free = [column for column in columns if (column >= 0).any()]
    rigid = [column for column in columns if not (column >= 0).any()]
    if not rigid or not free:
        return columns
    rows, tags = row_codes(free), row_codes(rigid)
    first = np.zeros(int(rows.max()) + 1, np.int64)
    first[rows] = np.arange(rows.size)
    kept = [column[first] for column in free]
    code = row_codes([_sets(rows, tags, first.size).view(np.int64)])
    return [*kept, rigid_labels(code)] if code.any() else kept


def _sets(rows: Ints, tags: Ints, count: int) -> Hashes:
    """A hash of the set of tags of each row."""
    row, tag = distinct_rows([rows, tags]).T
    found = np.zeros(count, np.uint64)
    np.add.at(found, row, mix(tag, 11))
    return found


def _parts(columns: Iterable[Ints], axes: Collection[int]) -> list[list[Ints]]:
    """Columns that share an axis, other than the given ones, directly or through others."""
    parts: list[tuple[set[int], list[Ints]]] = []
    for column in columns:
        own = set(_axes(column)) - set(axes)
        touching = [part for part in parts if part[0] & own or (not own and not part[0])]
        parts = [part for part in parts if not any(part is other for other in touching)]
        members = [item for _, items in touching for item in items]
        parts.append((own.union(*(found for found, _ in touching)), [*members, column]))
    return [items for _, items in parts]


def _summed(columns: Sequence[Ints], axes: Collection[int]) -> tuple[Ints, bool]:
    """A code of the set of tuples that occur at each position along some axes.

    Returns:
        The codes, and whether sets of different codes have nothing in common.
    """
    gone = [axis for axis in range(columns[0].ndim) if axis not in axes]
    full = np.broadcast_arrays(*thinned(columns, gone))
    kept = [axis for axis in range(full[0].ndim) if axis in axes]
    shape = [size if axis in axes else 1 for axis, size in enumerate(full[0].shape)]
    tags = row_codes([item.transpose([*kept, *gone]).reshape(-1) for item in full])
    count = math.prod(shape)
    if count == tags.size:
        return rigid_labels(tags).reshape(shape), True
    rows = np.repeat(np.arange(count), tags.size // count)
    codes = row_codes([_sets(rows, tags, count).view(np.int64)])
    apart = count_rows([codes[rows], tags]) == int(tags.max()) + 1
    return rigid_labels(codes).reshape(shape), apart


def _each_once(columns: Sequence[Ints], free: int) -> bool:
    """Whether each tuple of the first, free columns occurs with one tuple of the other ones.

    Of several, the union of their sets counts, and that may be the same for other tuples.
    """
    return count_rows(columns) == count_rows(columns[:free])


def _axes(column: Ints) -> list[int]:
    return [axis for axis, size in enumerate(column.shape) if size > 1]


def _flat(columns: Sequence[Ints]) -> list[Ints]:
    return [column.reshape(-1) for column in np.broadcast_arrays(*thinned(columns))]
