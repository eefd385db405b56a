"""Tensors that are at the same places of two outlines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from itertools import zip_longest
from typing import TypeAlias

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.outline import (
    SCALE,
    Anchor,
    Entry,
    Item,
    Leaf,
    Origin,
    keys_of,
    outline_of,
)

Meet: TypeAlias = Callable[[str, Leaf, Leaf], None]
"""Is told where two weights meet: by whom they are read, and of both how."""


def compare_outlines(own: OnnxSource, other: OnnxSource, meet: Meet) -> None:
    """Go through the outlines of two graphs from their outputs back.

    Args:
        own: a model.
        other: another one.
        meet: is told of every two weights that are at the same place; it may raise.

    Raises:
        ArchitectureMismatchError: the outlines differ; the first difference is named.
    """
    mine, theirs = outline_of(own), outline_of(other)
    if len(mine) != len(theirs):
        raise ArchitectureMismatchError(
            f"the graph has {len(mine)} outputs, and {len(theirs)} in the reference"
        )
    names = own.parsed.graph.outputs
    pending = [
        (f"the output {name!r}", one, two)
        for name, one, two in zip(names, mine, theirs, strict=True)
    ][::-1]
    seen: set[tuple[int, int]] = set()
    while pending:
        place, one, two = pending.pop()
        for first, second in _together(place, one, two):
            if isinstance(first, Leaf) and isinstance(second, Leaf):
                meet(place, first, second)
            if not (isinstance(first, Anchor) and isinstance(second, Anchor)):
                continue
            if (id(first), id(second)) in seen:
                continue
            seen.add((id(first), id(second)))
            _weights(first, second, meet)
            below = zip(first.sources, second.sources, strict=True)
            pending += [(first.label, a, b) for a, b in below][::-1]


def _weights(first: Anchor, second: Anchor, meet: Meet) -> None:
    for one, two in zip_longest(first.weights, second.weights):
        if one is not None and two is not None:
            meet(first.label, one, two)
        elif not all(leaf is None or leaf.uniform for leaf in (one, two)):
            read = one or two
            who = "not in the reference" if two is None else "in the reference only"
            raise ArchitectureMismatchError(
                f"{first.label} goes with {second.label} of the reference, and {who} it reads "
                f"{read.name if read is not None else ''!r}"
            )


def _together(place: str, mine: Origin, theirs: Origin) -> Iterator[tuple[Item, Item]]:
    """Items of two origins that go together; those that change nothing are left out if need be."""
    if keys_of(mine) != keys_of(theirs):
        raise ArchitectureMismatchError(_difference(place, mine, theirs))
    pairs, mine, theirs = _matched(mine, theirs)
    yield from pairs
    if mine or theirs:
        pairs, mine, theirs = _matched(_without_uniform(mine), _without_uniform(theirs))
        yield from pairs
    if mine or theirs:
        raise ArchitectureMismatchError(_difference(place, mine, theirs))


def _matched(mine: Origin, theirs: Origin) -> tuple[list[tuple[Item, Item]], Origin, Origin]:
    """Pairs of items that are alike, in their order, and what is left of both."""
    waiting: dict[Hashable, list[Item]] = {}
    for item in theirs:
        waiting.setdefault(_likeness(item), []).append(item)
    pairs, left = [], []
    for item in mine:
        found = waiting.get(_likeness(item))
        if found:
            pairs.append((item, found.pop(0)))
        else:
            left.append(item)
    return pairs, tuple(left), tuple(item for found in waiting.values() for item in found)


def _likeness(item: Item) -> Hashable:
    if isinstance(item, Entry):
        return item
    if isinstance(item, Leaf):
        return ("weight", tuple(sorted(item.dims)))
    leaf = item.weights[0] if item.kind == SCALE else None
    return (item.kind, None if leaf is None else tuple(sorted(leaf.dims)), item.keys)


def _without_uniform(origin: Origin) -> Origin:
    """What is left without weights that hold one number throughout."""
    found: dict[Item, None] = {}
    pending = list(origin)[::-1]
    while pending:
        item = pending.pop()
        leaf = item.weights[0] if isinstance(item, Anchor) and item.kind == SCALE else None
        if isinstance(item, Anchor) and leaf is not None and leaf.uniform:
            rest = (*item.sources[0], *(leaf for leaf in item.weights[1:] if leaf is not None))
            pending += rest[::-1]
        elif not (isinstance(item, Leaf) and item.uniform):
            found.setdefault(item)
    return tuple(found)


def _difference(place: str, mine: Origin, theirs: Origin) -> str:
    """The first item of one origin that the other has nothing for."""
    counts = Counter(map(_likeness, theirs))
    extra = next((item for item in mine if not counts[_likeness(item)]), None)
    counts = Counter(map(_likeness, mine))
    missing = next((item for item in theirs if not counts[_likeness(item)]), None)
    return (
        f"{place} is made of {_spoken(extra)}, where the reference has {_spoken(missing)}"
        if extra is not None or missing is not None
        else f"{place} is made of more in one of the files"
    )


def _spoken(item: Item | None) -> str:
    if item is None:
        return "nothing"
    if isinstance(item, Leaf):
        return f"the weight {item.name!r}"
    return f"input {item.place}" if isinstance(item, Entry) else item.label
