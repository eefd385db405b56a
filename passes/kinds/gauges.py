"""Numbers of a model that another choice of other parameters makes up for.

A norm's scale may be moved into what reads it, a bias into one further on; a reader of centred
values may read their mean as it likes. No group mixes units by that, but two models can be compared
only after the same choices were made in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxrebasin.groups import Centring, Reading, Shift
from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.absorbing import absorbers, invisible_ones, is_looked_up, taken_back
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.kinds.means import Means
from fxrebasin.passes.kinds.regions import is_split, read_apart
from fxrebasin.passes.kinds.walk import Walk, name_of, shape_of


def shifts_of(graph: FunctionalGraph, parameters: Sequence[str]) -> tuple[Shift, ...]:
    """All parameters to which anything may be added.

    Args:
        graph: of the model.
        parameters: names of those that are of interest.
    """
    found: dict[tuple[frozenset[str], tuple[int, ...]], Shift] = {}
    for name in parameters:
        node = graph.state.get(name)
        if node is None or not node.users or not _may_shift(node):
            continue
        takers = absorbers(graph, name)
        shape = shape_of(node)
        if takers is not None:
            size = shape[-1] if is_looked_up(graph, name) else math.prod(shape)
            found.setdefault((takers | {name}, ()), Shift(name, takers, size))
        elif len(shape) > 1:
            takers = absorbers(graph, name, alike=True)
            if takers is not None:
                found.setdefault((takers | {name}, ()), Shift(name, takers, shape[-1]))
        else:
            for shift in _parts_of_bias(graph, name):
                found.setdefault((shift.takers | {name}, shift.positions), shift)
    return tuple(found.values() if not graph.statistics else _told(graph, found.values()))


def _told(graph: FunctionalGraph, shifts: Iterable[Shift]) -> Iterator[Shift]:
    """Shifts that say whether they are taken back in training."""
    for shift in shifts:
        positions = torch.tensor(shift.positions) if shift.positions else None
        shape = shape_of(graph.state[shift.parameter])
        alike = positions is None and shift.dimension != math.prod(shape)
        takers = absorbers(graph, shift.parameter, positions, alike=alike, in_training=True)
        yield replace(shift, in_training=takers is not None)


def _parts_of_bias(graph: FunctionalGraph, name: str) -> Iterator[Shift]:
    """Parts of a bias, such as those of keys and of values, to which anything may be added."""
    parts = read_apart(graph, name) if is_split(graph, name) else []
    for part in parts if len(parts) > 1 else ():
        takers = absorbers(graph, name, part)
        if takers is not None:
            yield Shift(name, takers, len(part), tuple(part.tolist()))


def _may_shift(node: fx.Node) -> bool:
    """Whether a parameter is not a factor of a product, as most are that are large."""
    seen = [node]
    while seen:
        item = seen.pop()
        for user in item.users:
            name = name_of(user)
            if name in ("mm", "bmm") or (name == "convolution" and user.args[2] is not item):
                return False
            if name in ("t", "transpose", "permute"):
                seen.append(user)
    return True


def centring_of(walk: Walk, means: Means) -> Centring:
    """What is left open by centred norms on a class.

    Args:
        walk: of the class.
        means: what was found on it.
    """
    graph = walk.graph
    readings: dict[Place, Reading] = {}
    writers, unable = [], []
    for place, uses in means.uses.items():
        found = {use.reads or Reading(use.factors) for use in uses}
        if len(found) != 1 or not all(use.writes or use.reads is not None for use in uses):
            continue  # the same is added everywhere, once factors are multiplied in
        vector = place in means.vectors
        if not all(_hidden(walk, use.node, vector, means) for use in uses if use.writes):
            continue
        [reading] = found
        read = [use.node for use in uses if use.reads is not None]
        if reading.shift is None or all(_takes_back(graph, node) for node in read):
            readings[place] = reading
            if not read:
                writers.append(place)
        else:
            unable.append(reading.shift)
    shifts = [
        place
        for place in dict.fromkeys(unable)
        if place not in means.shown and absorbers(graph, place.state) is None
    ]
    readers = tuple(place for place in readings if place not in writers)
    return Centring(readers, readings, tuple(writers), tuple(shifts))


def _takes_back(graph: FunctionalGraph, node: fx.Node) -> bool:
    """Whether what a reader adds everywhere can be taken back; at borders, it may add less."""
    if name_of(node) == "convolution" and any(node.args[4]):  # type: ignore[arg-type]
        return False
    return taken_back(graph, node)


def _hidden(walk: Walk, node: fx.Node, vector: bool, means: Means) -> bool:
    """Whether nothing sees the mean over units of each copy of what a node makes.

    Args:
        walk: of the class.
        node: that makes it.
        vector: whether it is the same at all places but those of the units.
        means: what was found on the class.
    """
    marks = _marks(walk, node)
    axes = {axis for mark in marks for axis in mark.axes()}
    if len(axes) != 1 or any(bool((mark.units < 0).any()) for mark in marks):
        return False
    [axis] = axes
    if marks[0].units.numel() != shape_of(node)[axis]:
        return False
    return invisible_ones(walk.graph, node, axis, _means(marks[0].units, means.size), vector)


def _means(units: Tensor, size: int) -> Tensor:
    """By position along an axis, the mean that it is of.

    Where units recur, there is one for each time: of the units of each head, or, of heads, one for
    each of the units in them.

    Args:
        units: of a class, by position.
        size: how many of them a copy of the class has.
    """
    ordered, places = units.flatten().sort(stable=True)
    first = torch.searchsorted(ordered, ordered)
    times = torch.empty_like(places).scatter_(0, places, torch.arange(places.numel()) - first)
    return units.flatten() // size * (int(times.max()) + 1) + times


def _marks(walk: Walk, node: fx.Node) -> Sequence[Mark]:
    found: Mapping[fx.Node, list[tuple[Mark, ...]]] = walk.values
    return found.get(node, [()])[0]
