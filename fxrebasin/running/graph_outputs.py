"""What a graph returns in the place of what its model returned."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from fxrebasin.running.contents import TENSORS, Output, Walk, is_cache, tensors_reached
from fxrebasin.running.outputs import LISTED, Wanted, chosen_by, named_once
from fxrebasin.running.refusals import refusal
from fxrebasin.wording import listed


def for_graph(
    returned: Any, wanted: Wanted, *, objects: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """What a graph returns in the place of what its model returned, and notes on what it lacks.

    Only the outputs that count, in the same containers, with None in the places of the others. A
    graph returns no other objects than containers: their tensors come in a dict, by name.

    Args:
        returned: what the model returned, after `reduced`.
        wanted: which outputs count.
        objects: the tracer may know what to do with an object of which nothing is left out.
    """
    walk = Walk(refusal)
    walk.visit(returned, ())
    found = named_once(walk.found)
    chosen = [item for item in found if not item.cache]
    if isinstance(wanted, tuple):
        chosen = chosen_by(found, wanted)
    leaves, structure = pytree.tree_flatten(returned, is_leaf=is_cache)
    owners = _owners(leaves, found)
    left_out = [item for item in found if item not in chosen]
    if not left_out and (objects or owners is not None):
        return returned, ()
    if owners is None or not set(map(id, chosen)) <= set(map(id, owners)):
        kinds = dict.fromkeys(type(leaf).__name__ for leaf in leaves if _counted_inside(leaf))
        note = f"the graph returns a dict of tensors, for it cannot return a {', '.join(kinds)}"
        return {item.name: item.tensor for item in chosen}, (note,)
    kept = [
        leaf if owner in chosen or (owner is None and not is_cache(leaf)) else None
        for leaf, owner in zip(leaves, owners, strict=True)
    ]
    return pytree.tree_unflatten(kept, structure), (f"the graph leaves out {_described(left_out)}",)


def _counted_inside(leaf: Any) -> bool:
    return not isinstance(leaf, TENSORS) and not is_cache(leaf) and bool(tensors_reached(leaf))


def _described(outputs: Sequence[Output]) -> str:
    """Names of outputs; of caches, only that they are there."""
    caches = ["its cache of keys and values"] if any(item.cache for item in outputs) else []
    return listed([item.name for item in outputs if not item.cache] + caches, LISTED)


def _owners(leaves: Sequence[Any], found: Sequence[Output]) -> list[Output | None] | None:
    """Which output each leaf of a tree is; None if there are outputs in other objects than trees.

    Caches may be such objects.
    """
    rest = deque(found)
    owners: list[Output | None] = []
    for leaf in leaves:
        if not isinstance(leaf, TENSORS):
            owners.append(None)
            continue
        while rest and rest[0].cache and rest[0].tensor is not leaf:
            rest.popleft()
        if not rest or rest[0].tensor is not leaf:
            return None
        owners.append(rest.popleft())
    return owners if all(item.cache for item in rest) else None
