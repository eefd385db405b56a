"""Tensors that are at the same places of two outlines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import zip_longest
from typing import Protocol

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.origins import (
    LOOKUP,
    SCALE,
    Anchor,
    Entry,
    Item,
    Leaf,
    Origin,
    keys_of,
)
from fxrebasin.importers.onnx.outline import outline_of


class Meeting(Protocol):
    """Is told what is at the same places of two outlines; it may raise."""

    def meet(self, place: str, mine: Leaf, theirs: Leaf) -> None:
        """Two weights are: by whom they are read, and of both how."""

    def absorb(self, mine: Anchor) -> None:
        """A layer is there, which may be one with what follows it."""


def compare_outlines(
    own: OnnxSource, other: OnnxSource, found: Meeting, loose: bool = False
) -> None:
    """Go through the outlines of two graphs from their outputs back.

    Args:
        own: a model.
        other: another one.
        found: is told of every two weights that are at the same place.
        loose: whether inputs, tables, and weights that belong to no layer may be in one of them
            only, as where angles of positions are looked up in one and computed in the other.

    Raises:
        ArchitectureMismatchError: the outlines differ; the first difference is named.
    """
    mine, theirs = outline_of(own, loose), outline_of(other, loose)
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
        for first, second in _together(place, one, two, loose):
            if isinstance(first, Leaf) and isinstance(second, Leaf):
                found.meet(place, first, second)
            if not (isinstance(first, Anchor) and isinstance(second, Anchor)):
                continue
            if (id(first), id(second)) in seen:
                continue
            seen.add((id(first), id(second)))
            found.absorb(first)
            _weights(first, second, found)
            below = zip(first.sources, second.sources, strict=True)
            pending += [(first.label, a, b) for a, b in below][::-1]


def _weights(first: Anchor, second: Anchor, found: Meeting) -> None:
    for one, two in zip_longest(first.weights, second.weights):
        if one is not None and two is not None:
            found.meet(first.label, one, two)
        elif not all(leaf is None or leaf.uniform for leaf in (one, two)):
            read = one or two
            who = "not in the reference" if two is None else "in the reference only"
            raise ArchitectureMismatchError(
                f"{first.label} goes with {second.label} of the reference, and {who} it reads "
                f"{read.name if read is not None else ''!r}"
            )


def _together(place: str, mine: Origin, theirs: Origin, loose: bool) -> Iterator[tuple[Item, Item]]:
    """Items of two origins that go together; those that change nothing are left out if need be."""
    if keys_of(mine, loose) != keys_of(theirs, loose):
        raise ArchitectureMismatchError(_difference(place, mine, theirs))
    pairs, mine, theirs = _matched(mine, theirs)
    yield from pairs
    if mine or theirs:
        pairs, mine, theirs = _matched(_folded(mine), _folded(theirs))
        yield from pairs
    if mine or theirs:
        pairs, mine, theirs = _matched(_without_uniform(mine), _without_uniform(theirs))
        yield from pairs
    if loose:
        mine, theirs = _layers_only(mine), _layers_only(theirs)
    if mine or theirs:
        raise ArchitectureMismatchError(_difference(place, mine, theirs))


def _layers_only(origin: Origin) -> Origin:
    """What is left without inputs, tables and weights that belong to no layer."""
    return tuple(item for item in origin if isinstance(item, Anchor) and item.kind != LOOKUP)


def _matched(mine: Origin, theirs: Origin) -> tuple[list[tuple[Item, Item]], Origin, Origin]:
    """Pairs of items that are alike, in their order, and what is left of both."""
    pairs: list[tuple[Item, Item]] = []
    for whole in (True, False):  # what is of one size goes together first
        waiting: dict[Hashable, list[Item]] = {}
        for item in theirs:
            waiting.setdefault(_likeness(item, whole), []).append(item)
        left = []
        for item in mine:
            found = waiting.get(_likeness(item, whole))
            if found:
                pairs.append((item, found.pop(0)))
            else:
                left.append(item)
        mine, theirs = tuple(left), tuple(item for found in waiting.values() for item in found)
    return pairs, mine, theirs


def _likeness(item: Item, whole: bool = False) -> Hashable:
    """What items have in common that may go together.

    Args:
        item: of an origin.
        whole: whether layers have to be of one size; one may be several in the other file.
    """
    if isinstance(item, Entry):
        return item
    if isinstance(item, Leaf):
        return ("weight", tuple(sorted(item.dims)))
    leaf = item.weights[0] if item.kind == SCALE or (whole and item.weights) else None
    return (item.kind, None if leaf is None else tuple(sorted(leaf.dims)), item.keys)


def _folded(origin: Origin) -> Origin:
    """Layers and their tails as one."""
    return tuple(
        item.folded if isinstance(item, Anchor) and item.folded is not None else item
        for item in origin
    )


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
    return str(item) if isinstance(item, Entry) else item.label
