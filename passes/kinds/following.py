"""A class, followed from its places in the state through a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.absorbing import absorbers
from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.chosen_scales import Held
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import Mark, Shape, narrowed
from fxrebasin.passes.kinds.walk import Walk


def followed(
    graph: FunctionalGraph,
    analysis: Analysis,
    places: Mapping[Place, Tensor],
    form: Callable[[Place], object],
) -> Walk:
    """Go with a class through all operators that it reaches.

    Args:
        graph: of the model.
        analysis: what is asked.
        places: where units of the class are, along the axes of their tensors.
        form: how the part of a place answers.

    Raises:
        LimitError: an operator does not commute with the group that is asked about.
    """
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


def vectors_of(places: Mapping[Place, Tensor], shapes: Mapping[str, Shape]) -> set[Place]:
    """The places that hold one number for each unit.

    Args:
        places: where units of a class are.
        shapes: of the tensors.
    """
    return {
        place
        for place, units in places.items()
        if math.prod(shapes[place.state]) == units.numel()
        and (units >= 0).sum() == (units[units >= 0]).unique().numel()
    }


def held_of(graph: FunctionalGraph, places: Iterable[Place]) -> Held:
    """Which places of a class are no parameters.

    Args:
        graph: of the model.
        places: of the class.
    """
    fixed = [place for place in places if place.state not in graph.parameters]
    names = {place.state for place in fixed}
    stuck = {name for name in names if absorbers(graph, name) is None}
    return Held(
        frozenset(fixed),
        frozenset(place for place in fixed if place.state in graph.statistics),
        frozenset(place for place in fixed if place.state in stuck),
    )
