"""Where the units of one class are on a tensor, while the class is followed through the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxrebasin.kinds import Place
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass
from fxrebasin.passes.fields.fields import reshape_groups
from fxrebasin.places import parts_of, units_of

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mark:
    """Units of the class on one tensor.

    Attributes:
        units: as many axes as the tensor has, of size 1 where units do not depend on them: copy
            times size plus the unit's index in it, -1 where there is none of the class.
        form: how the tensor answers to an element of the group; the analysis says what that is.
        source: the part of a state tensor that this is, if nothing but movement was done to it.
        offset: a number that was added to that.
    """

    units: Tensor
    form: Any
    source: Place | None = None
    offset: float = 0.0

    def axes(self) -> list[int]:
        """The axes along which units differ."""
        return [axis for axis, size in enumerate(self.units.shape) if size > 1]

    def inner_axes(self, size: int) -> list[int]:
        """The axes along which units of one copy differ.

        Along others there are either all units of a place, each where it is, or none: those of one
        head among others, say.
        """
        index = torch.where(self.units >= 0, self.units % size, -1)
        found = []
        for axis in self.axes():
            rows = index.movedim(axis, 0).reshape(index.shape[axis], -1)
            whole = rows.amax(0)
            if not bool(((rows == whole).all(1) | (rows < 0).all(1)).all()):
                found.append(axis)
        return found

    def moved(self, move: Callable[[Tensor], Tensor]) -> Mark | None:
        """The same units elsewhere; None if there are none left.

        Args:
            move: what is done to a tensor whose axes may be of size 1 in place of any size.
        """
        units = move(self.units)
        if not bool((units >= 0).any()):
            return None
        moved = getattr(self.form, "moved", None)
        return replace(self, units=units, form=self.form if moved is None else moved(move))


Value: TypeAlias = tuple[Mark, ...]
"""All of the class on one tensor; nothing if the tensor stays as it is."""


def placed(
    layout: Layout,
    classes: Sequence[PermutationClass],
    sizes: Mapping[str, int],
    shapes: Mapping[str, Shape],
) -> dict[str, dict[Place, Tensor]]:
    """Where the units of classes are on the state, by the name of the class.

    They are given along the axes of the tensor of each place.

    Args:
        layout: of the symmetry.
        classes: that are of interest.
        sizes: of all classes.
        shapes: of the state tensors that are of interest.
    """
    found: dict[str, dict[Place, Tensor]] = {c.name: {} for c in classes}
    by_name = {c.name: c for c in classes}
    for state, shape in shapes.items():
        for number, group in enumerate(layout.get(state, ())):
            for index, piece in enumerate(group.pieces):
                for slot, item in enumerate(piece.slots):
                    c = by_name.get(item.class_name or "")
                    if c is None:
                        continue
                    units = units_of(piece, slot, c, sizes)
                    for k, part in enumerate(parts_of(piece)):
                        at = _along_axes(group, piece.positions[part], units[part], shape)
                        found[c.name][Place(state, number, index, slot, k)] = at
    return found


def _along_axes(group: AxisGroup, positions: IntArray, units: IntArray, shape: Shape) -> Tensor:
    total = math.prod(shape[axis] for axis in group.axes)
    flat = np.full(total, -1, np.int64)
    flat[positions.reshape(-1)] = units.reshape(-1)
    sizes = [size if axis in group.axes else 1 for axis, size in enumerate(shape)]
    order = sorted(range(len(group.axes)), key=lambda k: group.axes[k])
    grid = flat.reshape([shape[axis] for axis in group.axes]).transpose(order)
    return narrowed(torch.from_numpy(np.ascontiguousarray(grid)).reshape(sizes))


def narrowed(units: Tensor) -> Tensor:
    """Units with size 1 for the axes along which they are the same.

    Args:
        units: on a tensor.
    """
    for axis in range(units.dim()):
        first = units.narrow(axis, 0, 1)
        units = first if bool((units == first).all()) else units
    return units


def reshaped(units: Tensor, before: Shape, after: Shape) -> Tensor:
    """Units on a tensor that is given another shape, in the same order of elements.

    Args:
        units: on the tensor.
        before: its shape.
        after: its new shape.
    """
    expanded: list[int] = []
    shape: list[int] = []
    open_axes: list[int] = []
    for old, new in reshape_groups(before, after):
        varies = any(units.shape[axis] > 1 for axis in old)
        expanded += [before[axis] if varies else 1 for axis in old]
        open_axes += [len(shape) + k for k in range(len(new))] if varies else []
        shape += [after[axis] if varies else 1 for axis in new]
    found = units.expand(expanded).reshape(shape)
    for axis in open_axes:
        first = found.narrow(axis, 0, 1)
        if found.shape[axis] > 1 and bool((found == first).all()):
            found = first
    return found


def complete(units: Tensor, axes: Sequence[int], size: int) -> bool:
    """Whether, along some axes, all units of a copy occur equally often wherever one does.

    Args:
        units: on a tensor.
        axes: that are summed over.
        size: the number of units in a copy.
    """
    kept = [axis for axis in range(units.dim()) if axis not in axes]
    rows = units.permute(*kept, *axes).reshape(math.prod(units.shape[a] for a in kept), -1)
    for row in rows.unique(dim=0) if len(rows) > 1 else rows:
        present = row[row >= 0]
        copies = (present // size).unique()
        found, counts = present.unique(return_counts=True)
        if len(found) != len(copies) * size:
            return False
        by_copy = counts.reshape(len(copies), size)
        if not bool((by_copy == by_copy[:, :1]).all()):
            return False
    return True


def of_one_copy(units: Tensor, axes: Sequence[int], size: int) -> bool:
    """Whether, along some axes, all units are of the same copy.

    Args:
        units: on a tensor.
        axes: that are summed over.
        size: the number of units in a copy.
    """
    copies = units.div(size, rounding_mode="floor")
    over = list(axes)
    return not over or bool((copies.amax(over) == copies.amin(over)).all())


def raised(units: Tensor, rank: int) -> Tensor:
    """Units on a tensor that is broadcast to a number of axes."""
    return units.reshape([1] * (rank - units.dim()) + list(units.shape))


def overlap(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one rank have units at the same positions, along the same axes."""
    both = [a > 1 and b > 1 for a, b in zip(one.shape, two.shape, strict=True)]
    return any(both) and bool(((one >= 0) & (two >= 0)).any())


def common(one: Tensor, two: Tensor) -> Tensor:
    """The units that two tensors of one rank have at the same positions."""
    return torch.where(one == two, one, -1)


def covered(units: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether some tensors together have the same units at the same positions.

    Those of them that are elsewhere do not count.

    Args:
        units: on a tensor.
        others: on tensors of the same rank.
    """
    met = [other for other in others if overlap(units, other)]
    if not met or any(other.shape != units.shape for other in met):
        return False
    union = met[0]
    for other in met[1:]:
        union = torch.maximum(union, other)
    return bool(torch.equal(union[units >= 0], units[units >= 0]))


def distinct(marks: Iterable[Mark]) -> Value:
    """Marks without those that say what another one says: where two meet, each meets each.

    Args:
        marks: on one tensor.
    """
    found: list[Mark] = []
    for mark in marks:
        if not any(_is_said_by(mark, other) for other in found):
            found.append(mark)
    return tuple(found)


def _is_said_by(mark: Mark, other: Mark) -> bool:
    same = (mark.source, mark.offset, mark.form) == (other.source, other.offset, other.form)
    return same and same_units(mark.units, other.units)


def same_units(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors of one rank have the same units at the same positions."""
    return one.shape == two.shape and bool(torch.equal(one, two))
