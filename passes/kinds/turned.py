"""Units inside heads that no permutation moves, since rotary embeddings may turn them in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

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
    axes: list[tuple[str, int]] = []
    sizes: set[int] = set()
    for state, groups in layout.items():
        for group in groups:
            pieces = tuple(piece for piece in group.pieces if _has_rigid(piece, outer.name))
            sizes |= {_rigid(piece).size for piece in pieces}
            if pieces:
                found.setdefault(state, []).append(replace(group, pieces=pieces))
                axes += [(state, axis) for axis in group.axes]
    most = math.gcd(*sizes) if sizes else 0
    for times in range(1, _TIMES_AT_MOST + 1):
        size, rest = divmod(most, times)
        if not rest and size > 1 and size % 2 == 0:
            name = f"{axes[0][0]}[{axes[0][1]}] in pairs"
            c = PermutationClass(name, size, (outer.name,), outer.size, tuple(axes))
            yield c, {state: tuple(_cut(group, c) for group in own) for state, own in found.items()}


def _cut(group: AxisGroup, c: PermutationClass) -> AxisGroup:
    pieces = (part for piece in group.pieces for part in _with_class(piece, c))
    return replace(group, pieces=tuple(pieces))


def _has_rigid(piece: Piece, outer: str) -> bool:
    """Whether a piece has several rigid places inside each unit of a class, in one order."""
    names = [slot.class_name for slot in piece.slots]
    wide = [k for k, slot in enumerate(piece.slots) if slot.class_name is None and slot.size > 1]
    if names[0] != outer or len(wide) != 1:
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
    at = [slot.class_name for slot in piece.slots].index(c.within[0])
    slots = tuple(Slot(c.name, c.size, (at,)) if slot is rigid else slot for slot in piece.slots)
    for part in np.split(positions, rigid.size // c.size, axis=axis):
        yield Piece(slots, part)
