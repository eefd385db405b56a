"""Where the units of a class are on a part of a state tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxrebasin.kinds import Place
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass, Piece

_PARTS_AT_MOST = 16


def parts_of(piece: Piece) -> list[tuple[slice, ...]]:
    """One index for each rigid part of a piece, such as queries and keys; one in all if many.

    Args:
        piece: of an axis group.
    """
    rigid = [item.size if item.class_name is None else 1 for item in piece.slots]
    if math.prod(rigid) > _PARTS_AT_MOST:
        return [(slice(None),)]
    return [
        tuple(
            slice(None) if item.class_name is not None else slice(at, at + 1)
            for item, at in zip(piece.slots, where, strict=True)
        )
        for where in np.ndindex(*rigid)
    ]


def units_of(piece: Piece, slot: int, c: PermutationClass, sizes: Mapping[str, int]) -> IntArray:
    """The units at the positions of a piece: copy times size plus the index of the unit.

    Args:
        piece: of an axis group.
        slot: the number of the slot that is of the class.
        c: the class.
        sizes: of all classes that it is within.
    """
    shape = [item.size for item in piece.slots]
    grids = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    copy = np.zeros(shape, np.int64)
    for name, at in zip(c.within, piece.slots[slot].within, strict=True):
        copy = copy * sizes[name] + grids[at]
    return np.asarray(copy * c.size + grids[slot])


def positions_of(
    layout: Layout, place: Place, c: PermutationClass, sizes: Mapping[str, int]
) -> Tensor:
    """The flat positions of units, over the axes of their group.

    Args:
        layout: of the symmetry.
        place: a part of a state tensor.
        c: the class whose units are there.
        sizes: of all classes that it is within.

    Returns:
        int64 of shape (copies, units, places of each).
    """
    piece = layout[place.state][place.group].pieces[place.piece]
    part = parts_of(piece)[place.part]
    units = units_of(piece, place.slot, c, sizes)[part].reshape(-1)
    positions = piece.positions[part].reshape(-1)[units.argsort(kind="stable")]
    copies = math.prod(sizes[name] for name in c.within)
    return torch.from_numpy(np.ascontiguousarray(positions.reshape(copies, c.size, -1)))


def rows_of(tensor: Tensor, group: AxisGroup, positions: Tensor) -> Tensor:
    """What a tensor holds at positions of an axis group.

    Args:
        tensor: of any shape.
        group: the axes.
        positions: flat over these, of any shape.

    Returns:
        The shape of `positions`, and one axis for all else.
    """
    flat, _ = _flat(tensor, group)
    return flat[positions]


def with_rows(tensor: Tensor, group: AxisGroup, positions: Tensor, rows: Tensor) -> Tensor:
    """A copy of a tensor with something else at positions of an axis group.

    Args:
        tensor: of any shape.
        group: the axes.
        positions: flat over these, of any shape.
        rows: as `rows_of` returns them.
    """
    flat, order = _flat(tensor, group)
    flat = flat.clone()
    flat[positions] = rows
    moved = flat.reshape([tensor.shape[axis] for axis in order])
    back: Any = sorted(range(len(order)), key=order.__getitem__)
    return moved.permute(back).contiguous()


def _flat(tensor: Tensor, group: AxisGroup) -> tuple[Tensor, Sequence[int]]:
    """The axes of a group as one, and all others as another."""
    order = [*group.axes, *(axis for axis in range(tensor.dim()) if axis not in group.axes)]
    total = math.prod(tensor.shape[axis] for axis in group.axes)
    return tensor.permute(order).reshape(total, -1), order
