"""Which parameters take back what is added to others, and what nothing shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.shifts import Change, Shifts, ShownError, some
from fxrebasin.passes.kinds.walk import name_of, shape_of


def absorbers(
    graph: FunctionalGraph,
    name: str,
    positions: Tensor | None = None,
    *,
    alike: bool = False,
    in_training: bool = False,
) -> frozenset[str] | None:
    """The parameters that can take back whatever is added to one; None if they cannot.

    To an embedding, the same is added in all rows.

    Args:
        graph: of the model.
        name: of the parameter.
        positions: to which of its elements; None for all.
        alike: whether the same is added in all rows, those along its last axis.
        in_training: whether norms take their statistics of what they are given.
    """
    shape = tuple(graph.shapes[name].shape)
    if alike:
        shape = (*(1 for _ in shape[1:]), *shape[-1:])
    elif is_looked_up(graph, name):
        shape = (1, *shape[1:])
    added = some(*shape)
    if positions is not None:
        added = torch.zeros_like(added).index_put((positions,), added[positions])
    try:
        return frozenset(
            Shifts(graph, graph.shapes, in_training).follow(changed(graph, name, added))
        )
    except ShownError:
        return None


def is_looked_up(graph: FunctionalGraph, name: str) -> bool:
    """Whether rows of a parameter are looked up, so that it is an embedding.

    Args:
        graph: of the model.
        name: of the parameter.
    """
    return any(name_of(user) == "embedding" for user in graph.state[name].users)


def changed(graph: FunctionalGraph, name: str, added: Tensor) -> dict[fx.Node, Change]:
    """What an addition to a parameter adds where it is read.

    Args:
        graph: of the model.
        name: of the parameter.
        added: of its shape, with size 1 along axes where it is the same; for an embedding, only the
            first row is looked at.

    Raises:
        ShownError: it is not read in a way that can be followed.
    """
    node = graph.state[name]
    found: dict[fx.Node, Change] = {}
    for user in node.users:
        if name_of(user) == "embedding" and user.args[0] is node:
            found[user] = Change(added[0].reshape([1] * (len(shape_of(user)) - 1) + [-1]))
    if found and len(found) != len(node.users):
        raise ShownError
    return found or {node: Change(added)}


def taken_back(graph: FunctionalGraph, node: fx.Node) -> bool:
    """Whether parameters can take back what is added to the rows of a product.

    Args:
        graph: of the model.
        node: that makes the product, whose last axis is that of its rows of weights.
    """
    shape = shape_of(node)
    bias: Any = node.args[2] if name_of(node) == "convolution" else None
    if bias in graph.state.values() and len(bias.users) == 1:
        return True
    axis = 1 if name_of(node) == "convolution" else len(shape) - 1
    added = some(*(size if k == axis else 1 for k, size in enumerate(shape)))
    try:
        Shifts(graph, graph.shapes).follow({node: Change(added)})
    except ShownError:
        return False
    return True


def invisible_ones(
    graph: FunctionalGraph, node: fx.Node, axis: int, copies: Tensor, everywhere: bool
) -> bool:
    """Whether nothing depends on what is added to all units of a copy alike.

    Args:
        graph: of the model.
        node: that makes the tensor.
        axis: of the units.
        copies: which copy each position along it belongs to.
        everywhere: whether the same is added at all positions of the other axes.
    """
    shape = [1 if everywhere else size for size in shape_of(node)]
    shape[axis] = int(copies.max()) + 1
    try:
        added = some(*shape)
        if shape[axis] > 1:
            added = added.index_select(axis, copies)
        change = Change(added, known=False, origin=object())
        taken = Shifts(graph, graph.shapes).follow({node: change})
    except ShownError:
        return False
    return not taken
