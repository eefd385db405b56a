"""A matching problem whose tensors are in files: everything about it but their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Slot
from fxrebasin.solvers.families import restricted
from fxrebasin.streaming.stored import Stored


@dataclass(frozen=True)
class FileProblem:
    """Two models in files, of which the second moves.

    Args:
        classes: the permutation classes.
        every: where their units are, by state tensor name.
        sides: what is known of each compared tensor, of the reference and of the model, in the
            order of the layers; tied tensors once.
        free: names of the classes that may move.
    """

    classes: tuple[PermutationClass, ...]
    every: Layout
    sides: Mapping[str, tuple[Stored, Stored]]
    free: tuple[str, ...]

    @cached_property
    def layout(self) -> Layout:
        """Where the units of free classes are in the compared tensors."""
        found = restricted(self.every, self.classes, self.free)
        return {name: found[name] for name in self.sides if name in found}

    @cached_property
    def roots(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes of each family that may move, by the one that they are within."""
        outer = {c.name: [c.name] for c in self.classes if not c.within}
        for c in self.classes:
            for name in c.within:
                if name in outer and c.name in self.free:
                    outer[name].append(c.name)
        found = {root: tuple(n for n in names if n in self.free) for root, names in outer.items()}
        held = {name for names in self.held.values() for name in names}
        return {root: names for root, names in found.items() if names and root in held}

    @cached_property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the outer classes that a tensor holds, once for each of its axis groups."""
        outer = {c.name for c in self.classes if not c.within}
        return {
            name: tuple(found for group in groups for found in _names(group) if found in outer)
            for name, groups in self.layout.items()
        }

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the tensors that hold a family, by its root."""
        found: dict[str, list[str]] = {root: [] for root in self.roots}
        for name, roots in self.held.items():
            for root in dict.fromkeys(roots):
                if root in found:
                    found[root].append(name)
        return {root: tuple(names) for root, names in found.items()}

    def neighbours(self, root: str) -> frozenset[str]:
        """Roots of the families that the gains of a family depend on; its own if it meets itself.

        Args:
            root: of the family.
        """
        near: set[str] = set()
        for name in self.tensors[root]:
            roots = self.held[name]
            near |= set(roots) - {root}
            near |= {root} if roots.count(root) > 1 else set()
        return frozenset(near & self.roots.keys())

    def bytes_of(self, names: Iterable[str]) -> int:
        """That tensors of both models take.

        Args:
            names: of the tensors.
        """
        return sum(side.bytes for name in names for side in self.sides[name])

    def in_rows(self, name: str) -> bool:
        """Whether a tensor can be read a few rows at a time: no unit moves along its first axis.

        Args:
            name: of the tensor.
        """
        return may_be_cut(self.sides[name][1].shape, self.layout.get(name, ()))


def may_be_cut(shape: Collection[int], groups: tuple[AxisGroup, ...]) -> bool:
    """Whether no unit moves along the first axis of a tensor.

    Args:
        shape: of the tensor.
        groups: of its axes.
    """
    return len(shape) > 1 and all(0 not in group.axes for group in groups)


def _names(group: AxisGroup) -> list[str]:
    """Names of the classes on a group, each as often as a piece holds it at most."""
    return _most_often([_classes(piece.slots) for piece in group.pieces])


def _classes(slots: Iterable[Slot]) -> list[str]:
    return [slot.class_name for slot in slots if slot.class_name is not None]


def _most_often(lists: Iterable[list[str]]) -> list[str]:
    counts: dict[str, int] = {}
    for names in lists:
        for name in names:
            counts[name] = max(counts.get(name, 0), names.count(name))
    return [name for name, count in counts.items() for _ in range(count)]
