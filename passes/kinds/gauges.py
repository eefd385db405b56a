"""Numbers of a model that another choice of other parameters makes up for.

A norm's scale may be moved into what reads it, a bias into one further on; a reader of centred
values may read their mean as it likes. No group mixes units by that, but two models can be compared
only after the same choices were made in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx

from fxrebasin.groups import Centring, Shift
from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import Mark
from fxrebasin.passes.kinds.matrices import Matrices
from fxrebasin.passes.kinds.shifts import absorbers, invisible_ones, taken_back
from fxrebasin.passes.kinds.walk import Walk, name_of, shape_of


def shifts_of(graph: FunctionalGraph, parameters: Sequence[str]) -> tuple[Shift, ...]:
    """All parameters to which anything may be added.

    Args:
        graph: of the model.
        parameters: names of those that are of interest.
    """
    found: dict[frozenset[str], Shift] = {}
    for name in parameters:
        node = graph.state.get(name)
        if node is None or not node.users or not _may_shift(node):
            continue
        takers = absorbers(graph, name)
        if takers is not None:
            shape = shape_of(node)
            rows = any(name_of(user) == "embedding" for user in node.users)
            size = shape[-1] if rows else math.prod(shape)
            found.setdefault(takers | {name}, Shift(name, takers, size))
    return tuple(found.values())


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


def centring_of(walk: Walk, matrices: Matrices) -> Centring:
    """What is left open by centred norms on a class.

    Args:
        walk: of the class.
        matrices: what was found on it.
    """
    if not matrices.ones:
        return Centring()
    graph = walk.graph
    free, unable = [], []
    for place, node, shift in matrices.readers:
        if shift is None or taken_back(graph, node):
            free.append(place)
        else:
            unable.append(shift)
    own = {place.state for place in matrices.parts}
    shifts = [place for place in unable if absorbers(graph, place.state) is None]
    seen: dict[Place, bool] = {}
    for place, node in matrices.writers:
        if place in matrices.parts and not matrices.parts[place].factors and place.state in own:
            axis = _axis(walk, node, matrices.size)
            hidden = axis is not None and invisible_ones(graph, node, axis)
            seen[place] = seen.get(place, True) and hidden
    writers = tuple(place for place, hidden in seen.items() if hidden)
    return Centring(tuple(dict.fromkeys(free)), writers, tuple(dict.fromkeys(shifts)))


def _axis(walk: Walk, node: fx.Node, size: int) -> int | None:
    """The one axis along which units of the class are on what a node makes."""
    axes = {axis for mark in _marks(walk, node) for axis in mark.axes()}
    [axis] = axes if len(axes) == 1 else [None]
    return axis if axis is not None and shape_of(node)[axis] == size else None


def _marks(walk: Walk, node: fx.Node) -> Sequence[Mark]:
    found: Mapping[fx.Node, list[tuple[Mark, ...]]] = walk.values
    return found.get(node, [()])[0]
