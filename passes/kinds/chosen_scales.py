"""Which of all ways to scale the units of a class its group is made of.

What solves the equations leaves the function of a model in eval mode as it is. Statistics that
training takes of data, such as the mean and the variance in front of a batch norm, are other ones
as soon as what they are taken of is scaled, and no power of a number makes up for that: a norm adds
its epsilon to the variance. So the group of a class moves what is trained, and leaves statistics
alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.equations import Powers, Span, solutions

Exponents = Mapping[Place, int]


@dataclass(frozen=True)
class Held:
    """What of the state is no parameter.

    Attributes:
        fixed: places of all of it.
        statistics: those that training takes of data.
        stuck: those for which no parameter can make up.
    """

    fixed: Collection[Place] = ()
    statistics: Collection[Place] = ()
    stuck: Collection[Place] = ()


@dataclass(frozen=True)
class Chosen:
    """Independent ways to scale units.

    Attributes:
        scales: of the group; none if the units may not be scaled.
        factors: further ones, each with a factor of the model first, which makes up for others.
        spare: further ones, which are only counted.
        left_out: places of statistics that kept a way to scale units out of the group.
    """

    scales: Exponents
    factors: tuple[Exponents, ...]
    spare: tuple[Exponents, ...]
    left_out: tuple[Place, ...]


def chosen_scales(
    equations: Sequence[Powers], factors: Iterable[Place], places: Sequence[Place], held: Held
) -> Chosen:
    """Choose among the solutions of equations.

    Args:
        equations: sums of exponents that are zero.
        factors: vectors that units are multiplied by.
        places: of the class.
        held: those of them that are no parameters.
    """
    order = list(dict.fromkeys((*sorted(factors), *places)))
    own = solutions([*equations, *_still(factors)], places)
    of_training = [found for item in own if (found := _trained(item, equations, order, held))]
    scales = of_training[0] if of_training else {}
    apart = _still([*held.fixed, *([next(iter(scales))] if scales else [])])
    others = solutions([*equations, *apart], order)
    kept = [item for item in others if next(iter(item)) in factors]
    if any(place in held.fixed for item in own for place in item):
        kept = []  # a unit that is scaled behind its statistics is so by such a factor
    span = Span()
    for item in (scales, *kept):
        span.add(item)
    counted = solutions([*equations, *_still(held.stuck)], order)
    further = (*of_training[1:], *others, *counted, *solutions(equations, order))
    spare = tuple(item for item in further if span.add(item))
    lost = {} if of_training else {p: None for i in own for p in i if p in held.statistics}
    return Chosen(scales, tuple(kept), spare, tuple(lost))


def _still(places: Iterable[Place]) -> list[Powers]:
    return [{place: Fraction(1)} for place in places]


def _trained(
    item: Exponents, equations: Sequence[Powers], order: Sequence[Place], held: Held
) -> Exponents | None:
    """A way to scale units that does to what reads them what another one does, by parameters."""
    if not any(place in held.fixed for place in item):
        return item
    found = _instead(item, equations, order, held.fixed)
    if found is None and any(place in held.statistics for place in item):
        return _instead(item, equations, order, held.statistics)
    return found or item


def _instead(
    item: Exponents,
    equations: Sequence[Powers],
    order: Sequence[Place],
    still: Collection[Place],
) -> Exponents | None:
    """A way to scale units that leaves some places as they are, and does the same to readers."""
    up = next((power > 0 for place, power in item.items() if place in still), None)
    readers = [p for p, power in item.items() if (power > 0) is not up and p not in still]
    if up is None or not readers:
        return None
    first = readers[0]
    alike = [{first: Fraction(item[p]), p: Fraction(-item[first])} for p in readers[1:]]
    found = solutions([*equations, *_still(still), *alike], [first, *order])
    return next((other for other in found if first in other), None)
