"""Units inside heads that no permutation moves, since rotary embeddings may turn them in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Piece, Slot

_TIMES_AT_MOST = 16
"""As many heads of queries and keys are looked for in one part of a tensor."""


def turned_in(layout: Layout, outer: PermutationClass) -> Iterator[tuple[PermutationClass, Layout]]:
    """Classes that may be turned, of units at rigid places inside those of another, with layouts.

    Where queries and keys are parts of one tensor, these places hold several times the units of a
    head; each number of units is tried that they could be made of, the largest first.

    Args:
        layout: where units are.
        outer: a class, such as heads.
    """
    found: dict[str, list[AxisGroup]] = {}
    for state, groups in layout.items():
        for group in groups:
            pieces = tuple(piece for piece in group.pieces if _has_rigid(piece, outer.name))
            if pieces:
                found.setdefault(state, []).append(replace(group, pieces=pieces))
    yield from _cuts(found, outer)
    yield from _cuts(_alone(found), outer)


def turned_at(
    layout: Layout, axes: Iterable[tuple[str, int]], shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[PermutationClass, Layout]]:
    """The same for units that all heads share, as those of a single key head are.

    Args:
        layout: where units are.
        axes: of tensors, whose units are multiplied and summed over.
        shapes: of the tensors.
    """
    found: dict[str, list[AxisGroup]] = {}
    for state, axis in axes:
        groups = [group for group in layout.get(state, ()) if axis in group.axes]
        if any(group.axes != (axis,) for group in groups):
            return
        pieces = [piece for group in groups for piece in group.pieces]
        held = np.zeros(shapes[state][axis], bool)
        for piece in pieces:
            held[piece.positions.reshape(-1)] = True
        own = [piece for piece in pieces if _has_one_order(piece)]
        [left] = np.nonzero(~held)
        own += [Piece((Slot(None, len(left)),), left)] if len(left) > 1 else []
        if own:
            found.setdefault(state, []).append(AxisGroup((axis,), tuple(own)))
    yield from _cuts(found, None)
    yield from _cuts(_alone(found), None)


_Groups: TypeAlias = Mapping[str, Sequence[AxisGroup]]


def _alone(found: _Groups) -> _Groups:
    """Without places that are inside units of several classes; nothing if there are none.

    These may be heads inside groups of heads, or units beside those that are turned.
    """
    if not any(_is_nested(piece) for own in found.values() for g in own for piece in g.pieces):
        return {}
    left: dict[str, list[AxisGroup]] = {}
    for state, own in found.items():
        for group in own:
            pieces = tuple(piece for piece in group.pieces if not _is_nested(piece))
            if pieces:
                left.setdefault(state, []).append(replace(group, pieces=pieces))
    return left


def _is_nested(piece: Piece) -> bool:
    return sum(slot.class_name is not None for slot in piece.slots) > 1


def _cuts(
    found: _Groups, outer: PermutationClass | None
) -> Iterator[tuple[PermutationClass, Layout]]:
    axes = [(state, axis) for state, own in found.items() for group in own for axis in group.axes]
    pieces = (piece for own in found.values() for group in own for piece in group.pieces)
    most = math.gcd(*(_rigid(piece).size for piece in pieces))
    within, count = ((), 1) if outer is None else ((outer.name,), outer.size)
    for times in range(1, _TIMES_AT_MOST + 1):
        size, rest = divmod(most, times)
        if not rest and size > 1 and size % 2 == 0:
            name = f"{axes[0][0]}[{axes[0][1]}] in pairs" + " of all heads" * (outer is None)
            c = PermutationClass(name, size, within, count, tuple(axes))
            yield c, {state: tuple(_cut(group, c) for group in own) for state, own in found.items()}


def _cut(group: AxisGroup, c: PermutationClass) -> AxisGroup:
    pieces = (part for piece in group.pieces for part in _with_class(piece, c))
    return replace(group, pieces=tuple(pieces))


def _has_rigid(piece: Piece, outer: str) -> bool:
    """Whether a piece has several rigid places inside each unit of a class, in one order."""
    return piece.slots[0].class_name == outer and _has_one_order(piece)


def _has_one_order(piece: Piece) -> bool:
    wide = [k for k, slot in enumerate(piece.slots) if slot.class_name is None and slot.size > 1]
    if len(wide) != 1:
        return False
    rows = np.moveaxis(piece.positions, wide[0], -1).reshape(-1, piece.slots[wide[0]].size)
    order = rows.argsort(axis=1)
    return bool((order == order[:1]).all())


def _rigid(piece: Piece) -> Slot:
    return next(slot for slot in piece.slots if slot.class_name is None and slot.size > 1)


def _with_class(piece: Piece, c: PermutationClass) -> Iterator[Piece]:
    """The piece with the class at its rigid place, as often as it is there."""
    rigid = _rigid(piece)
    axis = piece.slots.index(rigid)
    first = np.moveaxis(piece.positions, axis, -1).reshape(-1, rigid.size)[0]
    positions = piece.positions.take(first.argsort(), axis=axis)
    names = [slot.class_name for slot in piece.slots]
    within = tuple(names.index(name) for name in c.within)
    slots = tuple(Slot(c.name, c.size, within) if slot is rigid else slot for slot in piece.slots)
    for part in np.split(positions, rigid.size // c.size, axis=axis):
        yield Piece(slots, part)


def of_pairs(c: PermutationClass, layout: Layout) -> Iterator[tuple[PermutationClass, Layout]]:
    """Classes with one unit for each pair, in both ways in which pairs lie, with layouts.

    Args:
        c: a class of units that may be pairs.
        layout: where these are.
    """
    for way in ("halves", "neighbours"):
        name = f"{c.name}: {way}"
        pair = PermutationClass(name, c.size // 2, c.within, c.count, c.axes)
        yield (
            pair,
            {
                state: tuple(
                    replace(
                        group, pieces=tuple(_paired(piece, c.name, pair) for piece in group.pieces)
                    )
                    for group in own
                )
                for state, own in layout.items()
            },
        )


def _paired(piece: Piece, name: str, pair: PermutationClass) -> Piece:
    """A piece with the pairs in place of their units, and which one of each pair last."""
    at = [slot.class_name for slot in piece.slots].index(name)
    shape = piece.positions.shape
    halves = pair.name.endswith("halves")
    split = (2, pair.size) if halves else (pair.size, 2)
    positions = piece.positions.reshape(*shape[:at], *split, *shape[at + 1 :])
    slots = list(piece.slots)
    slots[at] = Slot(pair.name, pair.size, piece.slots[at].within)
    return Piece((*slots, Slot(None, 2)), np.moveaxis(positions, at if halves else at + 1, -1))
