"""May units of a class be multiplied by numbers, and by which?

A unit of a tensor is multiplied by a number to some power. Operators relate these powers by linear
equations, over the rational numbers for the size of the number and modulo two for its sign. What
solves them all leaves the model's function as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.chosen_scales import Held, chosen_scales
from fxrebasin.passes.kinds.equations import Powers, sign_solutions
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.rules.scaling import Parity, Scaling

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

    def uneven(self, mark: Mark, other: Any, name: str) -> Form | None:
        """See `Analysis`: what nothing moves may multiply units, also each by another number."""
        if name in ("mul", "div"):
            return self._form(mark)
        self.kept(mark)
        return None

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

    def found(self, places: Sequence[Place], limit: str, held: Held) -> ClassKind:
        """The group that scales units, or changes their signs.

        Args:
            places: of the class.
            limit: why matrices do not act.
            held: places that are no parameters.
        """
        chosen = chosen_scales(self.equations, self.factors, places, held)
        still = ({place} for place in self.factors)
        signs = (*sign_solutions([*self.parities, *still], places), frozenset[Place]())[0]
        reasons = [
            f"{place.state} is a statistic of what would be scaled, and a norm adds to it"
            for place in chosen.left_out
        ]
        return ClassKind(
            _KINDS[bool(chosen.scales), bool(signs)],
            {},
            chosen.scales,
            dict.fromkeys((place for place in sorted(places) if place in signs), 1),
            chosen.factors,
            tuple(dict.fromkeys((limit, *reasons, *self.reasons))),
            offsets={place: offset for place, offset in sorted(self.offsets.items()) if offset},
            spare=chosen.spare,
        )


_KINDS = {
    (True, True): GroupKind.MONOMIAL,
    (True, False): GroupKind.POSITIVE,
    (False, True): GroupKind.SIGNED,
    (False, False): GroupKind.PERMUTATION,
}
"""By whether units may be scaled, and may change their signs."""
