"""May units of a class be multiplied by numbers, and by which?

A unit of a tensor is multiplied by a number to some power. Operators relate these powers by linear
equations, over the rational numbers for the size of the number and modulo two for its sign. What
solves them all leaves the model's function as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import TypeAlias

from fxrebasin.kinds import GroupKind, Place
from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.rules.scaling import Parity, Scaling

Powers: TypeAlias = Mapping[Place, Fraction]
Signs: TypeAlias = frozenset[Place]


@dataclass(frozen=True)
class Form:
    """The powers by which a value is multiplied, as sums of those of places."""

    powers: Powers
    signs: Signs


STILL = Form({}, frozenset())


def of_place(place: Place) -> Form:
    """The power of a place itself, which is not known yet.

    Args:
        place: of a state tensor.
    """
    return Form({place: Fraction(1)}, frozenset({place}))


def _plus(one: Powers, two: Powers, factor: int = 1) -> Powers:
    found = dict(one)
    for place, power in two.items():
        found[place] = found.get(place, Fraction(0)) + factor * power
    return {place: power for place, power in found.items() if power}


@dataclass
class Scales(Analysis):
    """Collects the equations; see `fxrebasin.passes.kinds.analysis`.

    Attributes:
        size: of a copy of the class.
        vectors: places that hold one number for each unit.
        at: the operator that is looked at.
        factors: places of these that units are multiplied by.
        offsets: what is added to each place wherever it is used.
    """

    size: int
    vectors: Collection[Place]
    at: object = ""
    equations: list[Powers] = field(default_factory=list)
    parities: list[Signs] = field(default_factory=list)
    factors: set[Place] = field(default_factory=set)
    reasons: dict[str, None] = field(default_factory=dict)
    offsets: dict[Place, float] = field(default_factory=dict)

    def offset(self, mark: Mark) -> bool:
        """See `Analysis`: what is multiplied is the sum, if it is the same everywhere."""
        return True

    def joined(self, one: Mark, two: Mark) -> Form:
        """See `Analysis`."""
        first, second = self._form(one), self._form(two)
        self._equal(_plus(first.powers, second.powers, -1), first.signs ^ second.signs)
        return first

    def multiplied(self, one: Mark, two: Mark) -> Form:
        """See `Analysis`."""
        for mark, other in ((one, two), (two, one)):
            if mark.source is not None and mark.source in self.vectors and other.source is None:
                self.factors.add(mark.source)
        first, second = self._form(one), self._form(two)
        return Form(_plus(first.powers, second.powers), first.signs ^ second.signs)

    def contracted(self, one: Mark, two: Mark) -> None:
        """See `Analysis`."""
        first, second = self._form(one), self._form(two)
        self._equal(_plus(first.powers, second.powers), first.signs ^ second.signs)

    def summed(self, mark: Mark) -> None:
        """See `Analysis`."""
        self._still(mark, "sums up the units")

    def beside(self, mark: Mark) -> Form:
        """See `Analysis`."""
        self._still(mark, "adds the same number to all units")
        return STILL

    def scaled(self, mark: Mark, scaling: Scaling) -> Form:
        """See `Analysis`."""
        form = self._form(mark)
        powers: Powers = {}
        signs: Signs = frozenset()
        if scaling.degree is None:
            self._equal(form.powers, frozenset())
        else:
            powers = _plus({}, {p: power * scaling.degree for p, power in form.powers.items()})
        if scaling.parity is None:
            self._equal({}, form.signs)
        elif scaling.parity is Parity.ODD:
            signs = form.signs
        if (scaling.degree is None and form.powers) or (scaling.parity is None and form.signs):
            self.reasons.setdefault(f"{self.at} computes element by element")
        return Form(powers, signs)

    def largest(self, mark: Mark) -> Form:
        """See `Analysis`."""
        form = self._form(mark)
        self._equal({}, form.signs)
        return form

    def carried(self, mark: Mark) -> Form:
        """See `Analysis`."""
        return self._form(mark)

    def stays(self, mark: Mark) -> Form:
        """As `kept`, where units are still told apart."""
        self._still(mark, "computes element by element")
        return STILL

    def kept(self, mark: Mark) -> None:
        """See `Analysis`."""
        self._still(mark, "allows permutations only")

    def _form(self, mark: Mark) -> Form:
        form: Form = mark.form
        place = mark.source
        if place is not None and self.offsets.setdefault(place, mark.offset) != mark.offset:
            self._equal({place: Fraction(1)}, frozenset({place}))
        return form

    def _still(self, mark: Mark, reason: str) -> None:
        form = self._form(mark)
        if form.powers or form.signs:
            self.reasons.setdefault(f"{self.at} {reason}")
        self._equal(form.powers, form.signs)

    def _equal(self, powers: Powers, signs: Signs) -> None:
        if powers:
            self.equations.append(powers)
        if signs:
            self.parities.append(signs)

    # Solutions --------------------------------------------------------------------------------

    def solved(self, places: Sequence[Place]) -> Solved:
        """All independent ways to scale units.

        Args:
            places: of the class.
        """
        fixed: list[Powers] = [{place: Fraction(1)} for place in self.factors]
        own = solutions([*self.equations, *fixed], places)
        everything = solutions(self.equations, [*sorted(self.factors), *places])
        signs = sign_solutions([*self.parities, *({place} for place in self.factors)], places)
        others = [item for item in everything if self.factors & item.keys()]
        if own and signs:
            kind = GroupKind.MONOMIAL
        elif own:
            kind = GroupKind.POSITIVE
        else:
            kind = GroupKind.SIGNED if signs else GroupKind.PERMUTATION
        return Solved(kind, tuple(own), tuple(signs), tuple(others[: len(everything) - len(own)]))


@dataclass(frozen=True)
class Solved:
    """Independent ways to scale the units of a class.

    Attributes:
        kind: the group.
        scales: exponents by place, factors of the model fixed.
        signs: places where signs change, factors of the model fixed.
        factors: exponents by place, where factors of the model change.
    """

    kind: GroupKind
    scales: tuple[Mapping[Place, int], ...]
    signs: tuple[frozenset[Place], ...]
    factors: tuple[Mapping[Place, int], ...]


def solutions(equations: Sequence[Powers], places: Sequence[Place]) -> list[dict[Place, int]]:
    """A basis of the whole numbers that solve homogeneous linear equations.

    Args:
        equations: sums that are zero.
        places: the unknowns; earlier ones are rather left free.
    """
    order = list(dict.fromkeys(places))
    rows: dict[Place, Powers] = {}  # by the unknown that each solves for: the last of it
    rank = {place: number for number, place in enumerate(order)}
    for equation in equations:
        row = _reduced(equation, rows)
        if row:
            pivot = max(row, key=lambda place: rank[place])
            row = {place: power / row[pivot] for place, power in row.items()}
            for other, old in list(rows.items()):
                if pivot in old:
                    rows[other] = _scaled_minus(old, row, old[pivot])
            rows[pivot] = row
    found = []
    for free in (place for place in order if place not in rows):
        powers = {free: Fraction(1)}
        powers |= {pivot: -row[free] for pivot, row in rows.items() if free in row}
        common = lcm(*(power.denominator for power in powers.values()))
        found.append({place: int(power * common) for place, power in powers.items() if power})
    return found


def _reduced(equation: Powers, rows: Mapping[Place, Powers]) -> Powers:
    row = equation
    for pivot, other in rows.items():
        if pivot in row:
            row = _scaled_minus(row, other, row[pivot])
    return row


def _scaled_minus(row: Powers, other: Powers, factor: Fraction) -> Powers:
    found = dict(row)
    for place, power in other.items():
        found[place] = found.get(place, Fraction(0)) - factor * power
    return {place: power for place, power in found.items() if power}


def sign_solutions(
    parities: Sequence[Collection[Place]], places: Sequence[Place]
) -> list[frozenset[Place]]:
    """A basis of the sets of places whose signs may change together.

    Args:
        parities: sets of places of which an even number changes.
        places: all of them.
    """
    order = list(dict.fromkeys(places))
    rank = {place: number for number, place in enumerate(order)}
    rows: dict[Place, frozenset[Place]] = {}
    for parity in parities:
        row = frozenset(parity)
        for pivot, other in rows.items():
            row = row ^ other if pivot in row else row
        if row:
            pivot = max(row, key=lambda place: rank[place])
            rows = {key: old ^ row if pivot in old else old for key, old in rows.items()}
            rows[pivot] = row
    return [
        frozenset({free, *(pivot for pivot, row in rows.items() if free in row)})
        for free in order
        if free not in rows
    ]
