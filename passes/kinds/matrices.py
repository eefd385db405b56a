"""May matrices act on the units of a class, and which?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import fx

from fxrebasin.kinds import Behind, GroupKind, Place
from fxrebasin.passes.kinds.analysis import Analysis, LimitError
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.rules.scaling import Parity, Scaling


@dataclass(frozen=True)
class Linear:
    """A value that is multiplied by the matrix, or by the transpose of its inverse.

    Attributes:
        root: the place whose variance this one goes by.
        sign: whether it is the same as there.
        factors: per-unit factors that it was multiplied by.
        centred: whether the mean over the units was taken off it, before factors.
        shift: what was added to it after that.
    """

    root: Place
    sign: int
    factors: tuple[Place, ...] = ()
    centred: bool = False
    shift: Place | None = None


@dataclass(frozen=True)
class Product:
    """Two linear values, multiplied element by element, of which the sum is of interest."""

    one: Linear
    two: Linear


@dataclass
class Matrices(Analysis):
    """Finds the largest group of matrices that commutes with all operators on a class.

    Attributes:
        size: of a copy of the class.
        vectors: places that hold one number for each unit.
        at: the operator that is looked at.
        orthogonal: whether only orthogonal matrices do.
        ones: whether they have to leave the vector of ones as it is.
        parts: what was found of places.
        readers: what reads centred values, with the operator and what was added before.
        writers: where places write into the model, with the operator.
    """

    size: int
    vectors: Collection[Place]
    at: str = ""
    orthogonal: bool = False
    ones: bool = False
    parts: dict[Place, Behind] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    readers: list[tuple[Place, fx.Node, Place | None]] = field(default_factory=list)
    writers: list[tuple[Place, fx.Node]] = field(default_factory=list)
    _parents: dict[Place, tuple[Place, int]] = field(default_factory=dict)

    def kind(self) -> GroupKind:
        """The group."""
        if self.ones:
            return GroupKind.ORTHOGONAL_FIXING_ONES
        return GroupKind.ORTHOGONAL if self.orthogonal else GroupKind.GENERAL_LINEAR

    def found(self) -> dict[Place, Behind]:
        """How each place answers, the first one as the matrix itself."""
        linear = {place: part for place, part in self.parts.items() if part.variance}
        result: dict[Place, Behind] = {}
        first: dict[Place, int] = {}
        for place in sorted(linear):
            root, sign = self._find(place)
            turned = sign * first.setdefault(root, sign)
            result[place] = replace(linear[place], variance=1 if self.orthogonal else turned)
        return result

    def factors(self) -> tuple[dict[Place, int], ...]:
        """By which powers places change with a factor between a norm and its readers, it first."""
        return tuple(
            {
                factor: 1,
                **{
                    place: -1 if part.reads else 1
                    for place, part in sorted(self.parts.items())
                    if factor in part.factors
                },
            }
            for factor in sorted(place for place, part in self.parts.items() if not part.variance)
        )

    # Operators --------------------------------------------------------------------------------

    def joined(self, one: Mark, two: Mark) -> Linear:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        first = self._linear(one)
        if one.source is None and two.source is not None:
            second = self._as(two.source, Behind(1, first.factors))
            self._writes(two)
        else:
            self._writes(one)
            self._writes(two)
            first, second = self._plain(one), self._plain(two)
        self._unite(first, second, 1)
        shift = two.source if first.centred and one.source is None else None
        return replace(first, centred=shift is not None, shift=shift)

    def multiplied(self, one: Mark, two: Mark) -> Linear | Product:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        if one.source is None and two.source in self.vectors and two.source is not None:
            first = self._linear(one)
            self._as(two.source, Behind(0))
            return replace(first, factors=(*first.factors, two.source))
        return Product(self._plain(one), self._plain(two))

    def contracted(self, one: Mark, two: Mark) -> None:
        """See `Analysis`."""
        if one.source is not None and two.source is None:
            one, two = two, one
        first = self._linear(one)
        if one.source is None and two.source is not None:
            second = self._as(two.source, Behind(1, first.factors, reads=bool(first.factors)))
            if first.centred and self.node is not None:
                self.readers.append((two.source, self.node, first.shift))
        else:
            first, second = self._plain(one), self._plain(two)
        self._unite(first, second, -1)

    def summed(self, mark: Mark) -> None:
        """See `Analysis`."""
        if isinstance(mark.form, Product):
            self._unite(mark.form.one, mark.form.two, -1)
        else:
            self._plain(mark)
            self._fix_ones()

    def beside(self, mark: Mark) -> Linear:
        """See `Analysis`."""
        found = self._plain(mark)
        self._fix_ones()
        return found

    def centred(self, mark: Mark) -> Linear:
        """See `Analysis`."""
        return replace(self.beside(mark), centred=True)

    def scaled(self, mark: Mark, scaling: Scaling) -> Linear | Product:
        """See `Analysis`."""
        if scaling.degree == 1 and scaling.parity is Parity.ODD:
            return self._plain(mark)
        if scaling.degree == 2 and scaling.parity is Parity.EVEN:
            found = self._plain(mark)
            return Product(found, found)
        raise self._limit("computes element by element")

    def largest(self, mark: Mark) -> Linear:
        """See `Analysis`."""
        raise self._limit("takes the largest element by element")

    def carried(self, mark: Mark) -> Linear | Product:
        """See `Analysis`."""
        if isinstance(mark.form, Product):
            return mark.form
        self._writes(mark)
        return self._linear(mark) if mark.source is None else self._plain(mark)

    def stays(self, mark: Mark) -> Linear:
        """As `kept`, where units are still told apart."""
        raise self._limit("computes element by element")

    def kept(self, mark: Mark) -> None:
        """See `Analysis`."""
        raise self._limit("allows permutations only")

    # Places -----------------------------------------------------------------------------------

    def _limit(self, reason: str) -> LimitError:
        return LimitError(f"{self.at} {reason}")

    def _linear(self, mark: Mark) -> Linear:
        if not isinstance(mark.form, Linear):
            raise self._limit("works on a product that is not summed over")
        return mark.form

    def _writes(self, mark: Mark) -> None:
        if mark.source is not None and self.node is not None:
            self.writers.append((mark.source, self.node))

    def _plain(self, mark: Mark) -> Linear:
        """A linear value that no factor scales."""
        if mark.source is not None:
            return self._as(mark.source, Behind(1))
        found = self._linear(mark)
        if found.factors:
            scales = ", ".join(place.state for place in found.factors)
            raise self._limit(f"reads units behind the factors {scales}, and is no linear layer")
        return found

    def _as(self, place: Place, part: Behind) -> Linear:
        """A place is used in some way, which has to be that of all its other uses."""
        if self.parts.setdefault(place, part) != part:
            raise self._limit(f"uses {place.state} in another way than operators before")
        return Linear(place, 1, part.factors)

    def _fix_ones(self) -> None:
        self.ones = True
        self.reasons.setdefault(f"{self.at} sums up the units")

    def _find(self, place: Place) -> tuple[Place, int]:
        parent, sign = self._parents.get(place, (place, 1))
        if parent == place:
            return place, 1
        root, further = self._find(parent)
        self._parents[place] = (root, sign * further)
        return root, sign * further

    def _unite(self, one: Linear, two: Linear, relation: int) -> None:
        """Two values vary alike, or one as the transpose of the other's inverse."""
        first, sign = self._find(one.root)
        second, other = self._find(two.root)
        relation *= one.sign * sign * two.sign * other
        if first != second:
            self._parents[first] = (second, relation)
        elif relation < 0:
            if not self.orthogonal:
                self.reasons.setdefault(f"{self.at} multiplies units by themselves")
            self.orthogonal = True
