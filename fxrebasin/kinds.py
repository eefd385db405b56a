"""The groups that may act on the units of a class, from permutations to all invertible matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class GroupKind(Enum):
    """The largest group that every operator on a class commutes with.

    Each stands for what it adds to the permutations that a class allows: none, where rotary
    embeddings hold the units of `COMPLEX_PAIRS` in place.

    Example:
        >>> GroupKind.SIGNED <= GroupKind.ORTHOGONAL
        True
        >>> GroupKind.POSITIVE.meet(GroupKind.ORTHOGONAL)
        <GroupKind.PERMUTATION: 'permutation'>
    """

    PERMUTATION = "permutation"
    SIGNED = "signed"
    POSITIVE = "positive"
    MONOMIAL = "monomial"
    COMPLEX_PAIRS = "complex pairs"
    ORTHOGONAL_FIXING_ONES = "orthogonal, ones fixed"
    ORTHOGONAL = "orthogonal"
    GENERAL_LINEAR = "general linear"

    def __le__(self, other: GroupKind) -> bool:
        """Whether this group is contained in another."""
        return self in _CONTAINED[other]

    def meet(self, other: GroupKind) -> GroupKind:
        """The largest of these groups that two of them contain.

        Args:
            other: another.
        """
        common = _CONTAINED[self] & _CONTAINED[other]
        return max(common, key=lambda kind: len(_CONTAINED[kind]))

    def dimension(self, size: int) -> int:
        """The dimension of the continuous part of the group.

        Args:
            size: the number of units.
        """
        return {
            GroupKind.PERMUTATION: 0,
            GroupKind.SIGNED: 0,
            GroupKind.POSITIVE: size,
            GroupKind.MONOMIAL: size,
            GroupKind.COMPLEX_PAIRS: size,
            GroupKind.ORTHOGONAL_FIXING_ONES: (size - 1) * (size - 2) // 2,
            GroupKind.ORTHOGONAL: size * (size - 1) // 2,
            GroupKind.GENERAL_LINEAR: size * size,
        }[self]

    @property
    def has_matrices(self) -> bool:
        """Whether elements mix units, so that they are given by matrices."""
        return self in _MIXING


_MIXING = frozenset(
    {
        GroupKind.COMPLEX_PAIRS,
        GroupKind.ORTHOGONAL_FIXING_ONES,
        GroupKind.ORTHOGONAL,
        GroupKind.GENERAL_LINEAR,
    }
)


def _closed(direct: dict[GroupKind, set[GroupKind]]) -> dict[GroupKind, frozenset[GroupKind]]:
    """Each kind with all that it contains, itself included."""
    found: dict[GroupKind, frozenset[GroupKind]] = {}
    for kind, parts in direct.items():  # in the order of inclusion
        found[kind] = frozenset({kind}).union(*(found[part] for part in parts))
    return found


_CONTAINED = _closed(
    {
        GroupKind.PERMUTATION: set(),
        GroupKind.SIGNED: {GroupKind.PERMUTATION},
        GroupKind.POSITIVE: {GroupKind.PERMUTATION},
        GroupKind.MONOMIAL: {GroupKind.SIGNED, GroupKind.POSITIVE},
        GroupKind.COMPLEX_PAIRS: {GroupKind.PERMUTATION},
        GroupKind.ORTHOGONAL_FIXING_ONES: {GroupKind.PERMUTATION},
        GroupKind.ORTHOGONAL: {GroupKind.SIGNED, GroupKind.ORTHOGONAL_FIXING_ONES},
        GroupKind.GENERAL_LINEAR: {
            GroupKind.MONOMIAL,
            GroupKind.ORTHOGONAL,
            GroupKind.COMPLEX_PAIRS,
        },
    }
)


class Kinds(Enum):
    """Which groups an analysis looks for; the values are what `symmetry=` takes."""

    PERMUTATION = "permutation"
    SIGNED = "signed"
    ALL = "all"


@dataclass(frozen=True, order=True)
class Place:
    """A part of a state tensor that units of one class lie on.

    Attributes:
        state: name of the tensor.
        group: which of its axis groups in the layout.
        piece: which piece of that.
        slot: which slot of that.
        part: the rigid part of the piece, such as queries or keys, counted row by row.
    """

    state: str
    group: int
    piece: int
    slot: int
    part: int


@dataclass(frozen=True)
class Behind:
    """How a part of a state tensor answers to an element of a group of matrices.

    Attributes:
        variance: +1 if the element itself acts, -1 if the transpose of its inverse does.
        factors: per-unit factors between a norm and this; the element acts once they are divided
            out of a shift, or multiplied into what reads it.
        reads: whether this reads what the factors scale; else it is added to it.
    """

    variance: int
    factors: tuple[Place, ...] = ()
    reads: bool = False


@dataclass(frozen=True)
class ClassKind:
    """The group that acts on the units of a class, and how.

    Attributes:
        kind: the group.
        parts: by place, for a group of matrices; the factors themselves are left as they are.
        scales: exponents by place: a positive number multiplies a unit there to that power.
        signs: exponents by place: -1 multiplies a unit there to that power.
        factors: other independent ways to scale units, each by a factor of the model: the first
            of its places.
        limits: which operators allow no larger group.
        partner: the other unit of each pair, for complex pairs.
        offsets: what a model adds to a part before it uses it, as norms do that multiply by one
            more than their weight: all of this is about the sum.
        spare: independent ways to scale units that are only counted: the model's function in eval
            mode stays, but statistics would have to go along, or nothing says how to choose.
    """

    kind: GroupKind
    parts: Mapping[Place, Behind]
    scales: Mapping[Place, int]
    signs: Mapping[Place, int] = field(default_factory=dict)
    factors: tuple[Mapping[Place, int], ...] = ()
    limits: tuple[str, ...] = ()
    partner: tuple[int, ...] = ()
    offsets: Mapping[Place, float] = field(default_factory=dict)
    spare: tuple[Mapping[Place, int], ...] = ()

    def variance(self, place: Place) -> int:
        """How a part of a state tensor answers: +1, -1, or 0 if it stays but for permutations.

        Args:
            place: the part.
        """
        if self.kind.has_matrices:
            return self.parts[place].variance if place in self.parts else 0
        return self.scales.get(place, self.signs.get(place, 0))
