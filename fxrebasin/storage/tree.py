"""What is in a checkpoint: dictionaries within dictionaries, with tensors and other objects."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from fxrebasin.errors import FxRebasinError
from fxrebasin.wording import escaped

KeyPath: TypeAlias = tuple[Any, ...]
"""Keys and indices, from the outside to the inside."""

_DEEPEST = 100
_MOST_WAYS = 1_000_000
_LONGEST_NAME = 4096
_OPTIMISER = re.compile(r"optim", re.IGNORECASE)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor."""
    return isinstance(value, torch.Tensor)


def structure_fault(tree: Any) -> str | None:
    """What makes containers too much to look into, in words: a file of a kilobyte may hold more.

    Args:
        tree: the whole.
    """
    ways: dict[int, int] = {}
    above: set[int] = set()

    def count(value: Any, depth: int) -> int:
        """In how many ways containers are inside this one, itself included."""
        if id(value) in above:
            raise _EndlessError("a dictionary or list that is inside itself")
        if depth > _DEEPEST:
            raise _EndlessError(f"dictionaries or lists that are more than {_DEEPEST} deep")
        if id(value) not in ways:
            above.add(id(value))
            long = [k for k, _ in _items(value) if isinstance(k, str) and len(k) > _LONGEST_NAME]
            if long:
                raise _EndlessError(f"a name of {len(long[0])} characters: {escaped(long[0], 80)}")
            inside = [v for _, v in _items(value) if isinstance(v, dict | list | tuple)]
            ways[id(value)] = 1 + sum(count(inner, depth + 1) for inner in inside)
            above.discard(id(value))
        return ways[id(value)]

    try:
        found = count(tree, 0)
    except _EndlessError as error:
        return str(error)
    if found > _MOST_WAYS:
        return f"dictionaries or lists that are inside each other in {found} ways"
    return None


class _EndlessError(FxRebasinError):
    """A structure that is not walked through; who knows the file says which one."""


def names_optimiser(name: str) -> bool:
    """Whether a key or the name of a file says that it is an optimiser's."""
    return _OPTIMISER.search(name) is not None


def optimisers(tree: Any, place: KeyPath = ()) -> Iterator[KeyPath]:
    """Where the states of optimisers are: moments of weights, not weights.

    They are told by what torch's optimisers write, or by their name; lists of them count as one.
    """
    for key, value in _items(tree):
        listed = type(value) in (list, tuple) and value and all(map(_is_optimiser, value))
        named = names_optimiser(str(key)) and _holds_tensors(value)
        if _is_optimiser(value) or listed or named:
            yield (*place, key)
        else:
            yield from optimisers(value, (*place, key))


def states(
    tree: Any, skipped: Collection[KeyPath] = (), place: KeyPath = ()
) -> Iterator[tuple[KeyPath, dict[str, torch.Tensor]]]:
    """Every dictionary with tensors in it, and where it is.

    Args:
        tree: the whole.
        skipped: places that are not looked into.
        place: of `tree`.
    """
    if place in skipped:
        return
    if isinstance(tree, dict):
        tensors = {k: v for k, v in tree.items() if isinstance(k, str) and is_tensor(v)}
        if tensors:
            yield place, tensors
    for key, value in _items(tree):
        yield from states(value, skipped, (*place, key))


def sequences(
    tree: Any, skipped: Collection[KeyPath], place: KeyPath = ()
) -> Iterator[tuple[KeyPath, Sequence[torch.Tensor]]]:
    """Every list of tensors, and where it is.

    Args:
        tree: the whole.
        skipped: places that are not looked into.
        place: of `tree`.
    """
    if place in skipped:
        return
    if type(tree) in (list, tuple) and tree and all(map(is_tensor, tree)):
        yield place, tree
    for key, value in _items(tree):
        yield from sequences(value, skipped, (*place, key))


def at(tree: Any, place: KeyPath) -> Any:
    """What is at a place."""
    for key in place:
        tree = tree[key]
    return tree


def without(tree: Any, places: Collection[KeyPath], here: KeyPath = ()) -> Any:
    """The tree without what is at some places; what is on the way there is copied."""
    if not any(place[: len(here)] == here for place in places):
        return tree
    kept = [
        (k, without(v, places, (*here, k))) for k, v in _items(tree) if (*here, k) not in places
    ]
    if isinstance(tree, Mapping):
        return like_mapping(tree, dict(kept))
    return type(tree)([value for _, value in kept])


def replaced(tree: Any, place: KeyPath, new: Any) -> Any:
    """The tree with something else at one place; what is on the way there is copied."""
    if not place:
        return new
    key, *rest = place
    inner = replaced(tree[key], tuple(rest), new)
    if isinstance(tree, Mapping):
        return like_mapping(tree, {**tree, key: inner})
    return type(tree)([inner if i == key else value for i, value in enumerate(tree)])


def like_mapping(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Any:
    """Other contents in a mapping of the same type, with its attributes (`_metadata`)."""
    made = copy.copy(old)
    made.clear()  # type: ignore[attr-defined]
    made.update(new)  # type: ignore[attr-defined]
    return made


def _items(tree: Any) -> Sequence[tuple[Any, Any]]:
    """What is directly in a container, with its keys.

    Other mappings than dictionaries, such as configurations, make values when they are asked.
    """
    if isinstance(tree, dict):
        return list(tree.items())
    return list(enumerate(tree)) if type(tree) in (list, tuple) else []


def _is_optimiser(value: Any) -> bool:
    return isinstance(value, dict) and {"state", "param_groups"} <= value.keys()


def _holds_tensors(value: Any) -> bool:
    return next(states(value), None) is not None or any(is_tensor(v) for _, v in _items(value))
