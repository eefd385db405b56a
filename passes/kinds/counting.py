"""How many numbers may be chosen freely, each counted once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fxrebasin.groups import Centring, Gauge, GaugeKind, Groups
from fxrebasin.kinds import GroupKind, Place
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.kinds.absorbing import absorbers
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.walk import shape_of
from fxrebasin.places import parts_of


def moving(groups: Groups, c: PermutationClass, graph: FunctionalGraph) -> int:
    """The dimension of a group on a class, without what moves no parameter at all.

    Where units outnumber the vectors that they are made of, some matrices leave all of these as
    they are, or do what a gauge does as well.

    Args:
        groups: what was found.
        c: the class.
        graph: of the model.
    """
    own = groups.kinds[c.name]
    whole = own.kind.dimension(c.size)
    if not parameters_do(graph, own.scales):
        return 0
    if not own.kind.has_matrices or own.kind is GroupKind.COMPLEX_PAIRS:
        return c.count * whole
    rank = {1: 0, -1: 0}
    for place, part in own.parts.items():
        if part.variance:
            rank[part.variance] += _held(groups, graph, place, c) // c.count
    if own.kind is GroupKind.GENERAL_LINEAR:
        still = max(0, c.size - rank[1]) * max(0, c.size - rank[-1])
    else:
        fixed = own.kind is GroupKind.ORTHOGONAL_FIXING_ONES
        still = GroupKind.ORTHOGONAL.dimension(max(0, c.size - fixed - rank[1] - rank[-1]))
    return c.count * (whole - still)


def parameters_do(graph: FunctionalGraph, places: Iterable[Place]) -> bool:
    """Whether a change of parameters alone can do what a change at some places does.

    Where buffers change as well, such as a running mean, parameters have to be able to take that
    back.
    """
    held = {place.state for place in places} - graph.parameters
    return all(absorbers(graph, name) is not None for name in held)


def _held(groups: Groups, graph: FunctionalGraph, place: Place, c: PermutationClass) -> int:
    """How many vectors of units a part holds that are no matter of a gauge."""
    if any(shift.parameter == place.state for shift in groups.shifts):
        return 0  # at least some of it
    found = _rows(groups, graph, place, c)
    for name, centring in groups.centring.items():
        others = (*centring.readers, *centring.writers) if name != c.name else ()
        found -= c.count * any(other.state == place.state for other in others)
    return max(0, found)


def gauges_of(
    groups: Groups, classes: Sequence[PermutationClass], graph: FunctionalGraph
) -> tuple[Gauge, ...]:
    """All numbers of a model that may be chosen freely, each counted once.

    Args:
        groups: what was found.
        classes: of the symmetry.
        graph: of the model.
    """
    found = [
        Gauge(GaugeKind.SHIFT, (shift.parameter, *sorted(shift.takers)), shift.dimension)
        for shift in groups.shifts
    ]
    for c in (*classes, *groups.still):
        own = groups.kinds[c.name]
        for factor in (*own.factors, *own.spare):
            if not parameters_do(graph, factor):
                continue
            names = tuple(dict.fromkeys(place.state for place in factor))
            found.append(Gauge(GaugeKind.SCALE, names, c.size * c.count))
        found += _of_centring(groups, c, graph)
    return tuple(found)


def _of_centring(groups: Groups, c: PermutationClass, graph: FunctionalGraph) -> list[Gauge]:
    own = groups.centring.get(c.name, Centring())
    found = [Gauge(GaugeKind.SHIFT, (place.state,), c.size) for place in own.shifts]
    rows = {place: _rows(groups, graph, place, c) for place in (*own.readers, *own.writers)}
    if own.readers:
        names = tuple(place.state for place in own.readers)
        count = sum(rows[place] for place in own.readers)
        found.append(Gauge(GaugeKind.MEAN_READ, names, count))
    if own.writers:
        names = tuple(dict.fromkeys(place.state for place in own.writers))
        doubly = [s for s in groups.shifts if {s.parameter, *s.takers} <= {*names}]
        count = sum(rows[place] for place in own.writers)
        count -= sum(shift.dimension // c.size for shift in doubly)
        count -= c.count * sum(_read_too(groups, place.state) for place in own.writers)
        found.append(Gauge(GaugeKind.MEAN_WRITTEN, names, count))
    return found


def _read_too(groups: Groups, state: str) -> int:
    """In how many classes a tensor reads centred values, so that some of its means are those."""
    return sum(
        any(place.state == state for place in centring.readers)
        for centring in groups.centring.values()
    )


def _rows(groups: Groups, graph: FunctionalGraph, place: Place, c: PermutationClass) -> int:
    """How many vectors of units there are in a part of a state tensor."""
    group = groups.layout_of(c.name)[place.state][place.group]
    piece = group.pieces[place.piece]
    shape = shape_of(graph.state[place.state])
    others = math.prod(n for axis, n in enumerate(shape) if axis not in group.axes)
    return piece.positions[parts_of(piece)[place.part]].size * others // c.size
