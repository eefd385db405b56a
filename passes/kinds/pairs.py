"""May complex numbers act on pairs of units that a rotary embedding turns?

Queries and keys of a head are turned, position by position, before their product is taken. What
turns them is linear with constant coefficients, so that a value is followed as a sum of terms: a
coefficient, and the unit that it multiplies. Complex numbers commute with that if, at each
position, both units of a pair get the same share of themselves and opposite shares of each other.
Coefficients may depend on the model's inputs, such as positions, as long as that holds for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxrebasin.kinds import Behind, Place
from fxrebasin.passes.kinds.analysis import Analysis, LimitError
from fxrebasin.passes.kinds.known import Known
from fxrebasin.passes.kinds.marks import Mark, Value, raised, same_units
from fxrebasin.passes.kinds.walk import name_of
from fxrebasin.passes.rules.scaling import Parity, Scaling

_SAME = 1e-6
"""How far coefficients of a rotation, which may be in single precision, may be from each other."""


@dataclass(frozen=True, eq=False)
class Term:
    """A multiple of units.

    Attributes:
        place: where the units come from.
        share: by which they are multiplied, broadcast to the tensor; None for one throughout.
    """

    place: Place
    share: Tensor | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Term:
        """The same at other places."""
        return self if self.share is None else Term(self.place, move(self.share))

    def times(self, factor: Tensor) -> Term:
        """A multiple of it, by a tensor of as many axes."""
        return Term(self.place, factor if self.share is None else self.share * factor)


@dataclass
class Pairs(Analysis):
    """Finds units that are turned in pairs; see `fxrebasin.passes.kinds.analysis`.

    Attributes:
        size: of a copy of the class.
        known: values of what depends on no state.
        at: the operator that is looked at.
        partner: the other unit of each pair.
        parts: how places answer.
    """

    apart = True

    size: int
    known: Known
    at: object = ""
    partner: Tensor | None = None
    parts: dict[Place, Behind] = field(default_factory=dict)
    _tied: list[tuple[Place, Place]] = field(default_factory=list)

    # Operators --------------------------------------------------------------------------------

    def joined(self, one: Mark, two: Mark) -> Any:
        """See `Analysis`."""
        raise self._limit()

    multiplied = joined
    contracted = joined

    def summed(self, mark: Mark) -> None:
        """See `Analysis`."""
        raise self._limit()

    beside = summed
    largest = summed
    stays = summed
    kept = summed

    def scaled(self, mark: Mark, scaling: Scaling) -> Term:
        """See `Analysis`."""
        negates = self.node is not None and name_of(self.node) == "neg"
        if negates and scaling.degree == 1 and scaling.parity is Parity.ODD:
            return self._term(mark).times(_minus_one(mark))
        raise self._limit()

    def carried(self, mark: Mark) -> Term:
        """See `Analysis`: the same for all units, whatever it is."""
        return self._term(mark)

    def uneven(self, mark: Mark, other: Any, name: str) -> Term:
        """See `Analysis`: a constant that differs from unit to unit multiplies them."""
        value = self.known.value(other) if isinstance(other, fx.Node) else None
        if value is None or name != "mul":
            raise self._limit()
        return self._term(mark).times(raised(value.double(), mark.units.dim()))

    def collected(self, one: Value, two: Value, name: str) -> Value | None:
        """See `Analysis`: sums are kept as they are; a bias belongs to what it is added to."""
        if name not in ("add", "sub") or not one or not two:
            return None
        if bool((_there(one) != _there(two)).any()):
            raise self._limit()  # something else is added to a part of the units
        if name == "sub":
            return (*one, *(replace(m, form=self._term(m).times(_minus_one(m))) for m in two))
        if len(one) == len(two) == 1 and same_units(one[0].units, two[0].units):
            first, second = self._term(one[0]), self._term(two[0])
            if first.share is None and second.share is None:
                self._tied.append((first.place, second.place))
                return (Mark(one[0].units, first),)
        return (*one, *two)

    def contracted_whole(self, one: Value, two: Value, summed: Sequence[int]) -> bool:
        """See `Analysis`: two tensors that are turned alike are multiplied."""
        if not any(set(mark.axes()) & set(summed) for mark in (*one, *two)):
            return False
        if len(summed) != 1 or not one or not two:
            raise self._limit()
        (places, partner), (others, other) = (
            self._pairing(value, summed[0]) for value in (one, two)
        )
        known = partner if self.partner is None else self.partner
        alike = torch.equal(partner, other) and torch.equal(partner, known)
        if not (alike and torch.equal(places, others)):
            raise self._limit()
        self.partner = partner
        for value, variance in ((one, 1), (two, -1)):
            for mark in value:
                self._answers(self._term(mark).place, variance)
        return True

    # Pairs ------------------------------------------------------------------------------------

    def found(self) -> dict[Place, Behind]:
        """How each place answers, a bias as what it is added to."""
        if self.partner is None:
            raise self._limit()
        for first, second in (*self._tied, *reversed(self._tied)):
            for place, other in ((first, second), (second, first)):
                if place in self.parts:
                    self._answers(other, self.parts[place].variance)
        return dict(sorted(self.parts.items()))

    def _pairing(self, value: Value, axis: int) -> tuple[Tensor, Tensor]:
        """Where units are along an axis, and their partners, if all stay there but for turning."""
        sizes = [max(mark.units.shape[k] for mark in value) for k in range(value[0].units.dim())]
        there = torch.zeros(sizes[axis], dtype=torch.bool)
        terms: list[tuple[Tensor, Tensor]] = []
        for mark in value:
            index = torch.where(mark.units >= 0, mark.units % self.size, -1).movedim(axis, -1)
            index = index.reshape(-1, index.shape[-1])
            if not bool((index == index[:1]).all()) or index.shape[-1] != sizes[axis]:
                raise self._limit()
            there |= index[0] >= 0
            share = self._term(mark).share
            full = torch.ones([1] * len(sizes), dtype=torch.float64) if share is None else share
            rows = full.movedim(axis, -1)
            rows = rows.expand(*rows.shape[:-1], sizes[axis]).reshape(-1, sizes[axis])
            terms.append((index[0], torch.where(index[0] >= 0, rows, 0.0)))
        if there.sum() != self.size:
            raise self._limit()
        own = [(index[there], share[:, there]) for index, share in terms]
        return there, self._checked(own)

    def _checked(self, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        units = torch.arange(self.size)
        partner = torch.full((self.size,), -1)
        rows = max(len(share) for _, share in terms)
        straight, crossed = (torch.zeros(rows, self.size, dtype=torch.float64) for _ in "ab")
        for index, share in terms:
            same, present = index == units, index >= 0
            straight = straight + torch.where(same, share, 0.0)
            crossed = crossed + torch.where(present & ~same, share, 0.0)
            other = torch.where(present & ~same, index, -1)
            if bool(((partner >= 0) & (other >= 0) & (partner != other)).any()):
                raise self._limit()
            partner = torch.maximum(partner, other)
        if bool((partner < 0).any()) or not torch.equal(partner[partner], units):
            raise self._limit()
        error = (straight - straight[:, partner]).abs() + (crossed + crossed[:, partner]).abs()
        if not bool((error < _SAME).all()):
            raise self._limit()
        return partner

    def _term(self, mark: Mark) -> Term:
        form = mark.form
        if not isinstance(form, Term):
            raise self._limit()
        return form

    def _answers(self, place: Place, variance: int) -> None:
        if self.parts.setdefault(place, Behind(variance)).variance != variance:
            raise self._limit()

    def _limit(self) -> LimitError:
        return LimitError(f"{self.at} does not turn units in pairs")


def _there(value: Value) -> Tensor:
    """Where on a tensor there are units, broadcast to it."""
    found = value[0].units >= 0
    for mark in value[1:]:
        found = found | (mark.units >= 0)
    return found


def _minus_one(mark: Mark) -> Tensor:
    return -torch.ones([1] * mark.units.dim(), dtype=torch.float64)
