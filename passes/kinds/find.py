"""The kind of each class of a symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import fxrebasin.passes.kinds.elementwise
import fxrebasin.passes.kinds.movements
import fxrebasin.passes.kinds.picked
import fxrebasin.passes.kinds.products  # noqa: F401  (importing these fills the table of operators)
from fxrebasin.groups import Centring, Groups
from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.layout import AxisGroup, Layout, PermutationClass
from fxrebasin.passes.kinds.absorbing import absorbers
from fxrebasin.passes.kinds.analysis import Analysis, LimitError
from fxrebasin.passes.kinds.chosen_scales import Held
from fxrebasin.passes.kinds.counting import gauges_of, moving
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.gauges import centring_of, shifts_of
from fxrebasin.passes.kinds.known import Known
from fxrebasin.passes.kinds.marks import Mark, narrowed, placed
from fxrebasin.passes.kinds.matrices import Linear, Matrices
from fxrebasin.passes.kinds.means import Means, Seen
from fxrebasin.passes.kinds.pairs import Pairs, Term
from fxrebasin.passes.kinds.scales import Scales, of_place
from fxrebasin.passes.kinds.turned import turned_in
from fxrebasin.passes.kinds.walk import Walk, shape_of


def kinds_of(
    graph: FunctionalGraph,
    classes: Sequence[PermutationClass],
    layout: Layout,
    parameters: Sequence[str],
) -> Groups:
    """The kind of each class, classes of units that are turned in pairs, and gauges.

    Args:
        graph: of the model.
        classes: of its symmetry.
        layout: where their units are.
        parameters: the names of the state that may be shifted.
    """
    sizes = {c.name: c.size for c in classes}
    shapes = {name: shape_of(node) for name, node in graph.state.items()}
    outer = {name for c in classes for name in c.within}
    kinds: dict[str, ClassKind] = {}
    centring: dict[str, Centring] = {}
    turned: list[PermutationClass] = []
    own: dict[str, tuple[AxisGroup, ...]] = {}
    for c in classes:
        for inner, places in () if c.within else turned_in(layout, c):
            at = placed(places, [inner], sizes, shapes)[inner.name]
            found = _pairs_of(graph, inner, at, layout)
            if found is not None:
                turned.append(inner)
                own |= places
                outer.add(c.name)
                kinds[inner.name] = found
                break
    for c in classes:
        if c.name in outer:
            kinds[c.name] = ClassKind(GroupKind.PERMUTATION, {}, {}, limits=(_OUTER,))
    others = [c for c in classes if c.name not in outer]
    for name, units in placed(layout, others, sizes, shapes).items():
        kinds[name], centring[name] = _kind_of(graph, sizes[name], units, shapes)
    groups = Groups(kinds, layout, tuple(turned), own, centring, shifts_of(graph, parameters))
    gauges = gauges_of(groups, classes, graph)
    whole = sum(moving(groups, c, graph) for c in (*classes, *turned))
    dimension = whole + sum(gauge.dimension for gauge in gauges)
    return replace(groups, gauges=gauges, dimension=dimension)


def _pairs_of(
    graph: FunctionalGraph,
    c: PermutationClass,
    places: Mapping[Place, torch.Tensor],
    layout: Layout,
) -> ClassKind | None:
    """How complex numbers act on units that are turned in pairs; None if they are not."""
    pairs = Pairs(c.size, Known(graph, frozenset(layout)))
    try:
        _walk(graph, pairs, places, Term)
        parts = pairs.found()
    except LimitError:
        return None
    if pairs.partner is None or parts.keys() != places.keys():
        return None
    partner = tuple(int(unit) for unit in pairs.partner)
    return ClassKind(GroupKind.COMPLEX_PAIRS, parts, {}, partner=partner)


_OUTER = "other classes are within it, and it only permutes their copies"


_AVERAGES = frozenset({"mean", "var_mean", "_softmax", "_safe_softmax", "_log_softmax"})
"""Where none of these is on its way, a mean over units cannot be hidden."""


def _kind_of(
    graph: FunctionalGraph,
    size: int,
    places: Mapping[Place, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[ClassKind, Centring]:
    vectors = {
        place
        for place, units in places.items()
        if math.prod(shapes[place.state]) == units.numel()
        and (units >= 0).sum() == (units[units >= 0]).unique().numel()
    }
    try:
        found, walk = _of_matrices(graph, Matrices(size, vectors), places)
    except LimitError as error:
        scales = Scales(size, vectors)
        walk = _walk(graph, scales, places, of_place)
        found = scales.found(sorted(places), error.reason, _held(graph, places))
    if not walk.met & _AVERAGES:
        return found, Centring()
    means = Means(size, vectors)
    centring = centring_of(_walk(graph, means, places, lambda place: Seen()), means)
    return replace(found, offsets={**_offsets(means), **found.offsets}), centring


def _of_matrices(
    graph: FunctionalGraph, matrices: Matrices, places: Mapping[Place, torch.Tensor]
) -> tuple[ClassKind, Walk]:
    walk = _walk(graph, matrices, places, lambda place: Linear(place, 1))
    found = ClassKind(
        matrices.kind(),
        matrices.found(),
        {},
        factors=matrices.factors(),
        limits=tuple(matrices.reasons),
        offsets=_offsets(matrices),
    )
    return found, walk


def _offsets(analysis: Matrices | Means) -> dict[Place, float]:
    return {place: offset for place, offset in sorted(analysis.offsets.items()) if offset}


def _held(graph: FunctionalGraph, places: Iterable[Place]) -> Held:
    fixed = [place for place in places if place.state not in graph.parameters]
    names = {place.state for place in fixed}
    stuck = {name for name in names if absorbers(graph, name) is None}
    return Held(
        frozenset(fixed),
        frozenset(place for place in fixed if place.state in graph.statistics),
        frozenset(place for place in fixed if place.state in stuck),
    )


def _walk(
    graph: FunctionalGraph,
    analysis: Analysis,
    places: Mapping[Place, torch.Tensor],
    form: Callable[[Place], object],
) -> Walk:
    walk = Walk(graph, analysis)
    marks: dict[tuple[Any, ...], list[Mark]] = {}
    for place, units in places.items():
        piece = (place.state, place.group, place.piece, place.slot)
        marks.setdefault(piece, []).append(Mark(units, form(place), place))
    for (state, *_), parts in marks.items():
        found = walk.values.setdefault(graph.state[state], [()])
        found[0] = (*found[0], *(parts if analysis.apart else _whole(parts, analysis)))
    walk.run()
    return walk


def _whole(parts: Sequence[Mark], analysis: Analysis) -> Sequence[Mark]:
    """The parts of a piece as one where only together they are the same along an axis."""
    if len({mark.units.shape for mark in parts}) > 1 or len(parts) == 1:
        return parts
    units = narrowed(torch.stack([mark.units for mark in parts]).amax(0))
    if all(units.shape == mark.units.shape for mark in parts):
        return parts
    whole = parts[0]
    for mark in parts[1:]:
        whole = Mark(units, analysis.joined(whole, mark))
    return (whole,)
