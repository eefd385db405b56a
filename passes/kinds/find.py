"""The kind of each class of a symmetry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

import fxrebasin.passes.kinds.elementwise
import fxrebasin.passes.kinds.movements
import fxrebasin.passes.kinds.picked
import fxrebasin.passes.kinds.products  # noqa: F401  (importing these fills the table of operators)
from fxrebasin.groups import Centring, Groups
from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.passes.kinds.analysis import LimitError
from fxrebasin.passes.kinds.counting import gauges_of, moving
from fxrebasin.passes.kinds.following import followed, held_of, vectors_of
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.gauges import centring_of, shifts_of
from fxrebasin.passes.kinds.inner import Inner
from fxrebasin.passes.kinds.marks import placed
from fxrebasin.passes.kinds.matrices import Linear, Matrices
from fxrebasin.passes.kinds.means import Means, Seen
from fxrebasin.passes.kinds.scales import Scales, of_place
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
    inner = Inner.of(graph, classes, layout, shapes)
    outer = inner.outer | {name for c in classes for name in c.within}
    kinds, centring = dict(inner.kinds), dict(inner.centring)
    for c in classes:
        if c.name in outer:
            kinds[c.name] = ClassKind(GroupKind.PERMUTATION, {}, {}, limits=(_OUTER,))
    others = [c for c in classes if c.name not in outer]
    for name, units in placed(layout, others, sizes, shapes).items():
        kinds[name], centring[name] = _kind_of(graph, sizes[name], units, shapes)
    groups = Groups(
        kinds,
        layout,
        tuple(inner.turned),
        inner.turned_layout,
        centring,
        shifts_of(graph, parameters),
        still=tuple(inner.still),
        still_layout=inner.still_layout,
    )
    gauges = gauges_of(groups, classes, graph)
    whole = sum(moving(groups, c, graph) for c in (*classes, *inner.turned))
    dimension = whole + sum(gauge.dimension for gauge in gauges)
    return replace(groups, gauges=gauges, dimension=dimension)


_OUTER = "other classes are within it, and it only permutes their copies"


_AVERAGES = frozenset({"mean", "var_mean", "_softmax", "_safe_softmax", "_log_softmax"})
"""Where none of these is on its way, a mean over units cannot be hidden."""


def _kind_of(
    graph: FunctionalGraph,
    size: int,
    places: Mapping[Place, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[ClassKind, Centring]:
    vectors = vectors_of(places, shapes)
    try:
        found, walk = _of_matrices(graph, Matrices(size, vectors), places)
    except LimitError as error:
        scales = Scales(size, vectors)
        walk = followed(graph, scales, places, of_place)
        found = scales.found(sorted(places), error.reason, held_of(graph, places))
    if not walk.met & _AVERAGES:
        return found, Centring()
    means = Means(size, vectors)
    centring = centring_of(followed(graph, means, places, lambda place: Seen()), means)
    return replace(found, offsets={**_offsets(means), **found.offsets}), centring


def _of_matrices(
    graph: FunctionalGraph, matrices: Matrices, places: Mapping[Place, torch.Tensor]
) -> tuple[ClassKind, Walk]:
    walk = followed(graph, matrices, places, lambda place: Linear(place, 1))
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
