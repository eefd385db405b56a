"""Elements that one call did not read go with those that it did read.

A table of positions is read as far as the inputs are long, so that of its other rows nothing is
known. A longer input reads them in the same way. Left where they are, they would be wrong there.

They count in comparisons, since an example is often shorter than what a model was trained on. Taps
of a filter do not: a model leaves out those that see only padding, which depends on the size of
images, and an example has the size of those that a model was trained on. Nothing trained them then,
and in two models they differ by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxrebasin.layout import Slab
from fxrebasin.passes.fields.labels import NONE
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints
from fxrebasin.passes.group.classes import Column
from fxrebasin.passes.group.grids import UnnamedGroup, piece_of
from fxrebasin.passes.group.state_fields import StateField, owner

Bools = npt.NDArray[np.bool_]

_STILL = 0
"""The place of an element that does not move."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read.

    Attributes:
        units: by label, whether something is computed from it, or it has to stay.
        classes: indices of the classes of which something is read.
    """

    units: Bools
    classes: frozenset[int]


def with_unread(
    laid: Mapping[str, list[UnnamedGroup]],
    shapes: Mapping[str, Sequence[int]],
    fields: Mapping[str, list[StateField]],
    reading: Reading,
    taps: Mapping[str, frozenset[int]],
) -> dict[str, list[UnnamedGroup]]:
    """Let the unread elements of state tensors move with those that were read.

    Along an axis at whose read places the same units are, these are at the other places too.

    Args:
        laid: by state tensor, which positions move.
        shapes: of the state tensors.
        fields: the labels on them.
        reading: what was read.
        taps: by state tensor, its axes along which it is the taps of a filter.
    """
    found = {}
    for state, groups in laid.items():
        along = taps.get(state, frozenset())
        found[state] = [
            _completed(item, fields[state], shapes[state], reading, along) for item in groups
        ]
    return found


def taps_of(ledger: Ledger, shapes: Mapping[str, Sequence[int]]) -> dict[str, frozenset[int]]:
    """By state tensor, its axes along which it is the taps of a filter.

    Args:
        ledger: what was recorded.
        shapes: of the state tensors.
    """
    found: dict[str, set[int]] = {}
    for item in ledger.taps:
        for axis in item.axes:
            own = owner(shapes[item.state], item.view.shape[axis], item.view.stride(axis))
            if own is not None:
                found.setdefault(item.state, set()).add(own)
    return {state: frozenset(axes) for state, axes in found.items()}


def _completed(
    item: UnnamedGroup,
    fields: Sequence[StateField],
    shape: Sequence[int],
    reading: Reading,
    taps: frozenset[int],
) -> UnnamedGroup:
    sizes = [shape[axis] for axis in item.axes]
    moving = [piece for piece in item.pieces if _moves(piece[0], reading)]
    covered = sum(positions.size for _, positions in moving)
    if len(sizes) < 2 or not moving or covered == math.prod(sizes):
        return item
    kinds = list(dict.fromkeys(_free(columns) for columns, _ in moving))
    places = _places(moving, kinds, sizes)
    unread = _unread(fields, item.axes, shape, reading.units) & (places == _STILL)
    axes = list(item.axes)
    uncounted = []
    for axis in item.axes:
        idle = _idle(unread, axes.index(axis))
        found = _at_one_place(places, unread, idle, axes.index(axis))
        if found is not None:
            places, unread = found
            axes.remove(axis)
            if axis in taps:
                uncounted.append(Slab(axis, tuple(np.flatnonzero(idle).tolist())))
    if len(axes) == len(item.axes):
        return item
    pieces = _pieces(places.reshape(-1), kinds)
    return item if pieces is None else UnnamedGroup(tuple(axes), pieces, tuple(uncounted))


def _moves(columns: Sequence[Column | None], reading: Reading) -> bool:
    return any(column is not None and column.index in reading.classes for column in columns)


def _free(columns: Sequence[Column | None]) -> tuple[Column, ...]:
    return tuple(column for column in columns if column is not None)


def _size(kind: Sequence[Column]) -> int:
    return math.prod(column.size for column in kind)


def _starts(kinds: Sequence[tuple[Column, ...]]) -> list[int]:
    """The number of the first coordinates of each kind."""
    found = [1]
    for kind in kinds:
        found.append(found[-1] + _size(kind))
    return found


def _places(
    pieces: Sequence[tuple[tuple[Column | None, ...], Ints]],
    kinds: Sequence[tuple[Column, ...]],
    sizes: Sequence[int],
) -> Ints:
    """By position, a number for its coordinates."""
    starts = _starts(kinds)
    found = np.full(math.prod(sizes), _STILL, dtype=np.int64)
    for columns, positions in pieces:
        kind = _free(columns)
        numbers = starts[kinds.index(kind)] + np.arange(_size(kind))
        rest = [1] * (positions.ndim - len(kind))
        found[positions] = numbers.reshape([*positions.shape[: len(kind)], *rest])
    return found.reshape(tuple(sizes))


def _unread(
    fields: Sequence[StateField], axes: tuple[int, ...], shape: Sequence[int], read: Bools
) -> Bools:
    """By position along some axes, whether nothing is computed from what is there."""
    found = np.ones([shape[axis] for axis in axes], dtype=np.bool_)
    for field in fields:
        labels = field.values
        unread = (labels == NONE) | ((labels >= 0) & ~read[np.maximum(labels, 0)])
        outside = tuple(at for at, axis in enumerate(field.axes) if axis not in axes)
        inside = tuple(axis for axis in field.axes if axis in axes)
        if inside:
            sizes = [shape[axis] if axis in inside else 1 for axis in axes]
            found &= unread.all(axis=outside).reshape(sizes)
    return found


def _idle(unread: Bools, axis: int) -> Bools:
    """By place along an axis, whether nothing there is read."""
    unread = np.moveaxis(unread, axis, 0)
    found: Bools = np.logical_and.reduce(unread.reshape(len(unread), -1), axis=1)
    return found


def _at_one_place(places: Ints, unread: Bools, idle: Bools, axis: int) -> tuple[Ints, Bools] | None:
    """What is at each read place along an axis, if that is the same and others are not read."""
    places, unread = np.moveaxis(places, axis, 0), np.moveaxis(unread, axis, 0)
    read = places[~idle]
    if len(read) in (0, len(places)) or (read != read[0]).any():
        return None
    still: Bools = np.logical_and.reduce(unread[~idle], axis=0)
    return read[0], still


def _pieces(
    places: Ints, kinds: Sequence[tuple[Column, ...]]
) -> tuple[tuple[tuple[Column | None, ...], Ints], ...] | None:
    """Grids of the positions that have places; None if coordinates are missing somewhere."""
    found = []
    for kind, start in zip(kinds, _starts(kinds), strict=False):
        where = np.flatnonzero((places >= start) & (places < start + _size(kind)))
        counts = np.bincount(places[where] - start, minlength=_size(kind))
        if not counts.all() or (counts != counts[0]).any():
            return None
        order = np.argsort(places[where], kind="stable")
        sizes = [column.size for column in kind]
        found.append(piece_of(kind, where[order].reshape(*sizes, int(counts[0]))))
    return tuple(found)
