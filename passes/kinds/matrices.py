"""May matrices act on the units of a class, and which?

A value that is linear in the units may be seen through per-unit factors of the model, such as the
scale of a norm or of a layer: multiplied by them it is what the matrix acts on. Which factors a
part of the state is seen through follows from the operators: what is added has the same ones, what
is multiplied and summed has opposite ones, and behind a norm there are none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from fxrebasin.kinds import Behind, GroupKind, Place
from fxrebasin.passes.kinds.analysis import Analysis, LimitError
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.rules.scaling import Parity, Scaling

Exponents: TypeAlias = Mapping[Place, int]


@dataclass(frozen=True)
class Linear:
    """A value that is multiplied by the matrix, or by the transpose of its inverse.

    Attributes:
        root: the place whose variance this one goes by.
        sign: whether it is the same as there; factors there count the same or the other way round.
        factors: exponents of factors that it has beyond those.
    """

    root: Place
    sign: int
    factors: Exponents = field(default_factory=dict)


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
        linear: places that the matrix acts on.
        scaling: places of factors, which stay.
        offsets: what is added to each of these before it multiplies.
    """

    size: int
    vectors: Collection[Place]
    at: object = ""
    orthogonal: bool = False
    ones: bool = False
    linear: dict[Place, None] = field(default_factory=dict)
    scaling: dict[Place, None] = field(default_factory=dict)
    offsets: dict[Place, float] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    _parents: dict[Place, Linear] = field(default_factory=dict)
    _known: dict[Place, Exponents] = field(default_factory=dict)

    def kind(self) -> GroupKind:
        """The group."""
        if self.ones:
            return GroupKind.ORTHOGONAL_FIXING_ONES
        return GroupKind.ORTHOGONAL if self.orthogonal else GroupKind.GENERAL_LINEAR

    def found(self) -> dict[Place, Behind]:
        """How each place answers, the first one as the matrix itself.

        Raises:
            LimitError: a place is seen through several factors that are not alike.
        """
        result: dict[Place, Behind] = {}
        first: dict[Place, int] = {}
        for place in sorted(self.linear):
            own = self._find(Linear(place, 1))
            turned = own.sign * first.setdefault(own.root, own.sign)
            exponents = _sum(own.factors, self._known.get(own.root, {}), own.sign)
            factors = tuple(p for p, power in sorted(exponents.items()) for _ in range(abs(power)))
            reads = any(power < 0 for power in exponents.values())
            if reads and any(power > 0 for power in exponents.values()):
                raise LimitError(f"{place.state} is seen through factors and their inverses")
            result[place] = Behind(1 if self.orthogonal else turned, factors, reads)
        return result

    def factors(self) -> tuple[dict[Place, int], ...]:
        """By which powers places change with a factor, it first."""
        parts = self.found()
        return tuple(
            {
                factor: 1,
                **{
                    place: part.factors.count(factor) * (-1 if part.reads else 1)
                    for place, part in parts.items()
                    if factor in part.factors
                },
            }
            for factor in sorted(self.scaling)
        )

    # Operators --------------------------------------------------------------------------------

    def joined(self, one: Mark, two: Mark) -> Linear:
        """See `Analysis`."""
        first = self._linear(one)
        self._unite(first, self._linear(two), 1)
        return first

    def multiplied(self, one: Mark, two: Mark) -> Linear | Product:
        """See `Analysis`."""
        if one.source is not None and (two.source is None or two.source not in self.vectors):
            one, two = two, one
        if one.source != two.source and two.source is not None and two.source in self.vectors:
            first = self._linear(one)
            self._scales(two.source, two.offset)
            return replace(first, factors=_sum(first.factors, {two.source: 1}))
        return Product(self._linear(one), self._linear(two))

    def contracted(self, one: Mark, two: Mark) -> None:
        """See `Analysis`."""
        self._unite(self._linear(one), self._linear(two), -1)

    def summed(self, mark: Mark) -> None:
        """See `Analysis`."""
        if isinstance(mark.form, Product):
            self._unite(mark.form.one, mark.form.two, -1)
        else:
            self._fix_ones(mark)

    def beside(self, mark: Mark) -> Linear:
        """See `Analysis`."""
        return self._fix_ones(mark)

    def offset(self, mark: Mark) -> bool:
        """See `Analysis`: if it is a factor, which is said where it multiplies."""
        return mark.source in self.vectors

    def scaled(self, mark: Mark, scaling: Scaling) -> Linear | Product:
        """See `Analysis`."""
        if scaling.degree == 1 and scaling.parity is Parity.ODD:
            return self._linear(mark)
        if scaling.degree == 2 and scaling.parity is Parity.EVEN:
            found = self._linear(mark)
            return Product(found, found)
        raise self._limit("computes element by element")

    def largest(self, mark: Mark) -> Linear:
        """See `Analysis`."""
        raise self._limit("takes the largest element by element")

    def carried(self, mark: Mark) -> Linear | Product:
        """See `Analysis`."""
        return mark.form if isinstance(mark.form, Product) else self._linear(mark)

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
        if mark.offset:
            raise self._limit("works on units to which a number is added")
        if mark.source is not None:
            self._acts_on(mark.source)
        return mark.form

    def _acts_on(self, place: Place) -> None:
        if place in self.scaling:
            raise self._limit(f"uses {place.state}, by which units are multiplied elsewhere")
        self.linear.setdefault(place)

    def _scales(self, place: Place, offset: float) -> None:
        if place in self.linear or self.offsets.setdefault(place, offset) != offset:
            raise self._limit(f"multiplies by {place.state}, which is another factor elsewhere")
        self.scaling.setdefault(place)

    def _fix_ones(self, mark: Mark) -> Linear:
        """What is summed up, or added to, is not seen through factors, and ones stay ones."""
        found = self._linear(mark)
        own = self._find(found)
        self._settle(own.root, {p: -own.sign * power for p, power in own.factors.items()})
        self.ones = True
        self.reasons.setdefault(f"{self.at} sums up the units")
        return found

    def _find(self, value: Linear) -> Linear:
        """The same value, by the root of its root."""
        parent = self._parents.get(value.root)
        if parent is None:
            return value
        top = self._find(parent)
        self._parents[value.root] = top
        factors = _sum(value.factors, top.factors, value.sign)
        return Linear(top.root, value.sign * top.sign, factors)

    def _unite(self, one: Linear, two: Linear, relation: int) -> None:
        """Two values vary alike, or one as the transpose of the other's inverse."""
        first, second = self._find(one), self._find(two)
        # first.sign * f1 + first.factors = relation * (second.sign * f2 + second.factors)
        rest = _sum(_times(second.factors, relation), first.factors, -1)
        turn = relation * second.sign * first.sign
        if first.root != second.root:
            known = self._known.pop(first.root, None)
            self._parents[first.root] = Linear(second.root, turn, _times(rest, first.sign))
            if known is not None:
                moved = _sum(known, _times(rest, first.sign), -1)
                self._settle(second.root, _times(moved, turn))
        elif turn > 0:
            if rest:
                raise self._limit_of_factors(rest)
        else:
            if not self.orthogonal:
                self.reasons.setdefault(f"{self.at} multiplies units by themselves")
            self.orthogonal = True
            if any(power % 2 for power in rest.values()):
                raise self._limit_of_factors(rest)
            half = {place: first.sign * power // 2 for place, power in rest.items()}
            self._settle(first.root, half)

    def _settle(self, root: Place, factors: Exponents) -> None:
        """The factors of a root are known from now on."""
        known = self._known.setdefault(root, factors)
        if dict(known) != dict(factors):
            raise self._limit_of_factors(_sum(known, factors, -1))

    def _limit_of_factors(self, factors: Exponents) -> LimitError:
        scales = ", ".join(sorted(place.state for place in factors))
        return self._limit(f"reads units both with and without the factors {scales}")


def _times(one: Exponents, factor: int) -> dict[Place, int]:
    return {place: factor * power for place, power in one.items()}


def _sum(one: Exponents, two: Exponents, factor: int = 1) -> dict[Place, int]:
    found = dict(one)
    for place, power in two.items():
        found[place] = found.get(place, 0) + factor * power
    return {place: power for place, power in found.items() if power}
