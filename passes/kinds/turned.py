"""Units inside heads that no permutation moves, since rotary embeddings may turn them in pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Piece, Slot


def turned_in(layout: Layout, outer: PermutationClass) -> tuple[PermutationClass, Layout] | None:
    """A class for the units that are at rigid places inside those of another, with its layout.

    Args:
        layout: where their units are.
        outer: a class, such as heads.

    Returns:
        None if there are no such units, or parts of the state differ in their number.
    """
    found: dict[str, tuple[AxisGroup, ...]] = {}
    axes: list[tuple[str, int]] = []
    sizes: set[int] = set()
    for state, groups in layout.items():
        for group in groups:
            pieces = [piece for piece in group.pieces if _has_rigid(piece, outer.name)]
            sizes |= {_rigid(piece).size for piece in pieces}
            if pieces:
                found[state] = (*found.get(state, ()), replace(group, pieces=tuple(pieces)))
                axes += [(state, axis) for axis in group.axes]
    if len(sizes) != 1:
        return None
    [size] = sizes
    name = f"{axes[0][0]}[{axes[0][1]}] in pairs"
    c = PermutationClass(name, size, (outer.name,), outer.size, tuple(axes))
    own = {
        state: tuple(
            replace(group, pieces=tuple(_with_class(piece, c) for piece in group.pieces))
            for group in groups
        )
        for state, groups in found.items()
    }
    return c, own


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


def _with_class(piece: Piece, c: PermutationClass) -> Piece:
    """The piece with the class at its rigid place."""
    rigid = _rigid(piece)
    axis = piece.slots.index(rigid)
    first = np.moveaxis(piece.positions, axis, -1).reshape(-1, rigid.size)[0]
    positions = piece.positions.take(first.argsort(), axis=axis)
    at = [slot.class_name for slot in piece.slots].index(c.within[0])
    slots = tuple(Slot(c.name, slot.size, (at,)) if slot is rigid else slot for slot in piece.slots)
    return Piece(slots, positions)
