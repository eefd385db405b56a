"""Where the units of each permutation class sit inside each state tensor.

A layout is what the analysis hands to matching and rewriting: it no longer knows about
operators or graphs, only about index arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxrebasin.facts import Brief
from fxrebasin.kinds import GroupKind
from fxrebasin.wording import listed

IntArray: TypeAlias = npt.NDArray[np.int64]
_LISTED = 3

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, repr=False)
class PermutationClass(Brief):
    """A set of units that one permutation acts on, possibly in several independent copies.

    A *dependent* class has one permutation per index of the classes in `within` (one per head
    for the dimensions inside a head), so that its permutation is an array of shape
    `(*sizes of within, size)`; an ordinary class has `within == ()` and shape `(size,)`.
    """

    name: str
    size: int
    within: tuple[str, ...] = ()
    count: int = 1
    axes: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> GroupKind:
        """The group that is known to act on the units."""
        return GroupKind.PERMUTATION

    def __repr__(self) -> str:
        copies = f", {self.count} copies" if self.within else ""
        moved = listed([f"{name}[{axis}]" for name, axis in self.axes], _LISTED)
        return f"PermutationClass({self.name}: {self.size} units{copies}; moves {moved})"

    def _facts(self) -> list[tuple[str, str]]:
        within = f", {self.count} copies within {', '.join(self.within)}" if self.within else ""
        axes = [f"{name}[{axis}]" for name, axis in self.axes]
        moved = listed(axes, _LISTED)
        return [("name", self.name), ("units", f"{self.size}{within}"), ("moves", moved)]


@dataclass(frozen=True, repr=False)
class UnitClass(PermutationClass):
    """A class with the largest group that acts on its units; see `fxrebasin.kinds`."""

    kind: GroupKind = GroupKind.PERMUTATION

    def _facts(self) -> list[tuple[str, str]]:
        return [*super()._facts(), ("group", self.kind.value)]


@dataclass(frozen=True)
class Slot:
    """One coordinate of a piece: the index of a unit in a class, or a rigid index.

    `class_name` is None for a rigid coordinate, which never moves. `within` holds the positions,
    in the piece's own slots, of the coordinates that select the copy, in the order of
    `PermutationClass.within`.
    """

    class_name: str | None
    size: int
    within: tuple[int, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A set of positions of an axis group that is addressed by slot coordinates.

    `positions` has the slots' sizes as its shape and holds flat positions (row-major over the
    group's axes).
    """

    slots: tuple[Slot, ...]
    positions: IntArray


@dataclass(frozen=True)
class Slab:
    """Some positions along one axis of a tensor, everywhere along the others."""

    axis: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class AxisGroup:
    """Axes of a tensor that move together, independently of the tensor's other axes.

    Nearly always one axis. Two or more where the position along one axis depends on another:
    the input channels of a grouped convolution are permuted per group of output channels.
    Positions that no piece names never move.

    `uncounted` are slabs along other axes that move like the rest, and are not compared: nothing
    shows that they were trained. See `fxrebasin.counted`.
    """

    axes: tuple[int, ...]
    pieces: tuple[Piece, ...]
    uncounted: tuple[Slab, ...] = ()

    @cached_property
    def pattern(self) -> bytes:
        """Equal for groups whose positions are those of the same units, on whatever axes."""
        # Bytes remember their hash.
        return b"".join(repr(p.slots).encode() + p.positions.tobytes() for p in self.pieces)


Layout: TypeAlias = Mapping[str, tuple[AxisGroup, ...]]


def names_in(layout: Layout, tensors: Iterable[str]) -> set[str]:
    """Names of the classes that some tensors hold.

    Args:
        layout: by state tensor name.
        tensors: names; those that the layout does not have hold none.
    """
    groups = (group for name in tensors for group in layout.get(name, ()))
    slots = (slot for group in groups for piece in group.pieces for slot in piece.slots)
    return {slot.class_name for slot in slots if slot.class_name is not None}


def same_layout(first: Layout, second: Layout) -> bool:
    """Whether two layouts put the same units at the same positions.

    Args:
        first: by state tensor name.
        second: another.
    """

    def described(groups: tuple[AxisGroup, ...]) -> list[tuple[tuple[int, ...], bytes]]:
        return sorted((group.axes, group.pattern) for group in groups)

    return first is second or (
        first.keys() == second.keys()
        and all(described(groups) == described(second[name]) for name, groups in first.items())
    )
