"""Index arithmetic over classes and layouts: which position moves where, and what fits what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fxrebasin.errors import InputError
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass, Piece

Arrays: TypeAlias = Mapping[str, IntArray]


def identity_arrays(classes: Sequence[PermutationClass]) -> dict[str, IntArray]:
    """Arrays, by class name, that move nothing: int64 of shape `(*sizes of within, size)`.

    Args:
        classes: every class, including those that others are within.

    Raises:
        InputError: the classes do not fit each other.
    """
    check_classes(classes)
    sizes = {c.name: c.size for c in classes}
    arrays = {}
    for c in classes:
        units = np.arange(c.size, dtype=np.int64)
        arrays[c.name] = np.tile(units, [*(sizes[n] for n in c.within), 1]) if c.within else units
    return arrays


def gather_index(group: AxisGroup, total: int, arrays: Arrays) -> IntArray:
    """Where each flat position of an axis group comes from.

    Args:
        group: axes and the pieces on them.
        total: number of flat positions, the product of the axes' sizes.
        arrays: by class name; a piece with a class that has no array is marked with -1.

    Returns:
        int64 of shape (total,): `new_flat[i] = old_flat[index[i]]`.
    """
    index = np.arange(total, dtype=np.int64)
    for piece in group.pieces:
        index[piece.positions] = piece_source(piece, arrays)
    return index


def piece_source(piece: Piece, arrays: Arrays) -> IntArray:
    """Flat positions that the units of a piece come from, in the shape of its slots.

    Args:
        piece: slots and their positions.
        arrays: by class name.

    Returns:
        int64 in the shape of `piece.positions`; all -1 when a class has no array.
    """
    if any(slot.class_name not in arrays for slot in piece.slots if slot.class_name is not None):
        return np.full_like(piece.positions, -1)
    coordinates = open_grids([slot.size for slot in piece.slots])
    # Advanced indexing with open grids: the coordinates of the copy select, the own one follows.
    source = tuple(
        at
        if slot.class_name is None
        else arrays[slot.class_name][(*(coordinates[w] for w in slot.within), at)]
        for slot, at in zip(piece.slots, coordinates, strict=True)
    )
    return np.asarray(piece.positions[source])


def open_grids(sizes: Sequence[int]) -> list[IntArray]:
    """Coordinates over a box, one array per axis, each of size 1 along the others."""
    return [np.asarray(grid) for grid in np.ix_(*(np.arange(size) for size in sizes))]


def extent(group: AxisGroup, shape: Sequence[int]) -> int:
    """Number of flat positions of an axis group.

    Args:
        group: its axes.
        shape: of the tensor.
    """
    return math.prod(shape[axis] for axis in group.axes)


def misfits(groups: Sequence[AxisGroup], shape: Sequence[int]) -> list[str]:
    """Why a tensor cannot have this layout; nothing if it can.

    Args:
        groups: of the layout.
        shape: of the tensor.

    Returns:
        For each axis that is missing, or too short for the positions in use, what is wrong.
    """
    faults = []
    for group in groups:
        for slab in group.uncounted:
            if slab.axis >= len(shape) or max(slab.positions, default=-1) >= shape[slab.axis]:
                faults.append(f"has shape {tuple(shape)}; {slab} is not in it")
        needed = max((int(p.positions.max()) for p in group.pieces if p.positions.size), default=-1)
        if max(group.axes) >= len(shape):
            faults.append(f"has shape {tuple(shape)}, no axis {max(group.axes)}")
        elif needed >= extent(group, shape):
            faults.append(
                f"has shape {tuple(shape)}; axes {group.axes} need {needed + 1} positions"
            )
    return faults


def check_classes(classes: Sequence[PermutationClass]) -> None:
    """Check that names are unique and that `within` is complete.

    Args:
        classes: the permutation classes.

    Raises:
        InputError: what does not hold, with the class.
    """
    by_name = {c.name: c for c in classes}
    if len(by_name) != len(classes):
        raise InputError("two permutation classes have the same name")
    for c in classes:
        for name in c.within:
            if name not in by_name:
                raise InputError(f"class {c.name!r} is within {name!r}, which does not exist")
            beyond = [outer for outer in by_name[name].within if outer not in c.within]
            if beyond or name == c.name or c.within.count(name) > 1:
                raise InputError(
                    f"class {c.name!r} is within {', '.join(c.within)}: each must be named once, "
                    f"with the classes that it is within itself"
                )


def check_layout(classes: Sequence[PermutationClass], layout: Layout) -> None:
    """Check that every slot is a class of its size, in the copies that the class has.

    Args:
        classes: the permutation classes.
        layout: by state tensor name.

    Raises:
        InputError: the first slot that does not fit, with its tensor.
    """
    by_name = {c.name: c for c in classes}
    for name, groups in layout.items():
        for group in groups:
            for piece in group.pieces:
                fault = _piece_fault(piece, by_name)
                if fault:
                    raise InputError(f"layout of {name!r}, axes {group.axes}: {fault}")


def _piece_fault(piece: Piece, classes: Mapping[str, PermutationClass]) -> str:
    """What is wrong with a piece, or an empty string."""
    slots = piece.slots
    if piece.positions.shape != tuple(slot.size for slot in slots):
        return f"positions of shape {piece.positions.shape} for slots of sizes " + ", ".join(
            str(slot.size) for slot in slots
        )
    for slot in slots:
        if slot.class_name is None:
            continue
        if slot.class_name not in classes:
            return f"class {slot.class_name!r} does not exist"
        c = classes[slot.class_name]
        if any(not 0 <= w < len(slots) for w in slot.within):
            return f"class {c.name!r}: within {slot.within} of {len(slots)} slots"
        if c.size != slot.size or c.within != tuple(slots[w].class_name for w in slot.within):
            return (
                f"a slot of size {slot.size} does not fit class {c.name!r} ({c.size}, {c.within})"
            )
    return ""
