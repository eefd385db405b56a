"""Parts of what was recorded that have nothing to do with each other, and those that are alike.

The layers of a network repeat: what was recorded of the units of one is, but for the numbers of the
units, what was recorded of those of the next. Where nothing ties them to each other or to the rest,
what follows from one follows from all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import numpy as np

from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints, memory


class Kind(Enum):
    """What an entry says of its labels."""

    MET = auto()
    TUPLES = auto()
    EDGE = auto()
    TIE = auto()
    TIED = auto()
    SELECTION = auto()
    PIN = auto()


@dataclass(frozen=True, eq=False)
class Entry:
    """One thing that was recorded, as arrays of labels.

    Attributes:
        kind: of it. `MET` are columns over the axes of a tensor, `TUPLES` flat ones; `TIED` are
            units and their representatives, of those that were made together.
        arrays: of labels.
    """

    kind: Kind
    arrays: tuple[Ints, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Units that constraints connect, as far as units that were made together are kept together.

    Attributes:
        births: the indices of the ranges of units that were made together.
        entries: the indices of what was recorded of them.
    """

    births: tuple[int, ...]
    entries: tuple[int, ...]


def entries_of(
    ledger: Ledger, met: Iterable[Sequence[Ints]], tuples: Iterable[Sequence[Ints]]
) -> list[Entry]:
    """All that a ledger holds, relations and edges first.

    Args:
        ledger: for the other constraints.
        met: labels that meet on tensors.
        tuples: relations that were made small already.
    """
    return [
        *(Entry(Kind.MET, tuple(columns)) for columns in met),
        *(Entry(Kind.TUPLES, tuple(columns)) for columns in tuples),
        *(Entry(Kind.EDGE, (edge.children, edge.parents)) for edge in ledger.edges),
        *(Entry(Kind.TIE, pair) for pair in ledger.ties),
        *_tied(ledger),
        *(Entry(Kind.SELECTION, (labels.numpy(),)) for labels in ledger.members),
        *(Entry(Kind.PIN, (pin.units,)) for pin in ledger.pins),
    ]


def _tied(ledger: Ledger) -> Iterator[Entry]:
    roots = ledger.compress()
    moved = np.flatnonzero(roots != np.arange(roots.size))
    starts = np.array([start for start, _ in ledger.births], np.int64)
    for birth in np.unique(np.searchsorted(starts, moved, side="right") - 1):
        start, end = ledger.births[birth]
        yield Entry(Kind.TIED, (np.arange(start, end), roots[start:end]))


def parts_of(ledger: Ledger, entries: Sequence[Entry]) -> list[list[Part]]:
    """The parts of a ledger; those that are alike together, in order of their first units.

    Args:
        ledger: for the units.
        entries: all that it holds.
    """
    labels = _Births(ledger)
    alike: dict[object, list[list[Part]]] = {}
    for part in _connected(labels, entries):
        same = alike.setdefault(_outline(labels, entries, part), [])
        for group in same:
            if _Comparison(labels, entries, group[0], part).same():
                group.append(part)
                break
        else:
            same.append([part])
    return [group for same in alike.values() for group in same]


class _Births:
    """Which ranges of units arrays of labels are of; an array that recurs is read once."""

    def __init__(self, ledger: Ledger) -> None:
        self.ranges = ledger.births
        self.starts = np.array([start for start, _ in ledger.births], np.int64)
        self._known: dict[object, tuple[int, ...]] = {}

    @cached_property
    def of_unit(self) -> Ints:
        """By unit, the range that it is of."""
        return np.repeat(np.arange(len(self.ranges)), [end - start for start, end in self.ranges])

    def of(self, labels: Ints) -> tuple[int, ...]:
        """The ranges that some labels are of, ascending."""
        key = memory(labels)
        if key not in self._known:
            self._known[key] = self._found(without_repeats(labels))
        return self._known[key]

    def _found(self, labels: Ints) -> tuple[int, ...]:
        if labels.size and labels.min() < 0:
            labels = labels[labels >= 0]
        if not labels.size:
            return ()
        low, high = np.searchsorted(self.starts, [labels.min(), labels.max()], side="right") - 1
        if low == high:
            return (int(low),)
        return tuple(np.flatnonzero(np.bincount(self.of_unit[labels].reshape(-1))).tolist())


def without_repeats(labels: Ints) -> Ints:
    """The first of those places at which an array has the same memory.

    Args:
        labels: of any shape.
    """
    return labels[tuple(slice(0, 1) if step == 0 else slice(None) for step in labels.strides)]


def _connected(labels: _Births, entries: Sequence[Entry]) -> list[Part]:
    """Ranges of units that entries connect, in order, with these entries."""
    above = list(range(len(labels.ranges)))

    def find(birth: int) -> int:
        while above[birth] != birth:
            above[birth] = birth = above[above[birth]]
        return birth

    touched = [[b for labelled in item.arrays for b in labels.of(labelled)] for item in entries]
    for births in touched:
        for birth in births[1:]:
            one, other = find(births[0]), find(birth)
            above[max(one, other)] = min(one, other)
    members: dict[int, tuple[list[int], list[int]]] = {}
    for birth in range(len(above)):
        members.setdefault(find(birth), ([], []))[0].append(birth)
    for index, births in enumerate(touched):
        if births:
            members[find(births[0])][1].append(index)
    return [Part(tuple(births), tuple(own)) for births, own in members.values()]


def _outline(labels: _Births, entries: Sequence[Entry], part: Part) -> object:
    """What parts that are alike have in common, as far as it takes no look at single labels."""
    number = {birth: index for index, birth in enumerate(part.births)}
    sizes = tuple(labels.ranges[birth][1] - labels.ranges[birth][0] for birth in part.births)
    shapes = tuple(
        (
            entries[index].kind,
            *(
                (item.shape, tuple(number[birth] for birth in labels.of(item)))
                for item in entries[index].arrays
            ),
        )
        for index in part.entries
    )
    return sizes, shapes


class _Comparison:
    """Whether two parts of one outline say the same of units that are at the same places."""

    def __init__(
        self, labels: _Births, entries: Sequence[Entry], first: Part, second: Part
    ) -> None:
        self._labels, self._entries = labels, entries
        self._first, self._second = first, second
        self._steps = np.zeros(len(labels.ranges), np.int64)
        ours, theirs = (labels.starts[list(part.births)] for part in (first, second))
        self._steps[list(first.births)] = theirs - ours
        self._known: dict[object, bool] = {}

    def same(self) -> bool:
        """True when all entries are alike."""
        return all(
            self._equal(one, two)
            for a, b in zip(self._first.entries, self._second.entries, strict=True)
            for one, two in zip(self._entries[a].arrays, self._entries[b].arrays, strict=True)
        )

    def _equal(self, one: Ints, two: Ints) -> bool:
        key = memory(one), memory(two)
        if key not in self._known:
            self._known[key] = self._compared(one, two)
        return self._known[key]

    def _compared(self, one: Ints, two: Ints) -> bool:
        if one.strides == two.strides:
            one, two = without_repeats(one), without_repeats(two)
        births = self._labels.of(one)
        if not births:
            return np.array_equal(one, two)
        free = one >= 0
        steps = {int(step) for step in self._steps[list(births)]}
        if len(steps) == 1 and free.all():
            return bool((two - one == steps.pop()).all())
        moved = self._steps[self._labels.of_unit[np.maximum(one, 0)]]
        return np.array_equal(np.where(free, one + moved, one), two)
