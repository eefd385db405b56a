"""What was recorded of parts that are alike is solved once, and said of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heapreplace
from itertools import count, pairwise

import numpy as np

from fxrebasin.passes.fields.labels import RIGID
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Bools, Ints, Table
from fxrebasin.passes.group.classes import Classes, Column, Motion, Nesting
from fxrebasin.passes.group.closure import Moves
from fxrebasin.passes.group.parts import Part
from fxrebasin.passes.group.reading import meetings, spread_use
from fxrebasin.passes.group.single import Single
from fxrebasin.passes.group.structure import Blocks, Structure

Ranges = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Group:
    """Parts that are alike.

    Attributes:
        own: the ranges of units of the one that was solved, as they are numbered there.
        copies: of each part, the same ranges as they are numbered in all; the solved one is first.
    """

    own: Ranges
    copies: list[Ranges]


@dataclass(frozen=True)
class _Item:
    """A colour: its first unit, how its coordinates are made up, and the class made for it."""

    unit: int
    kind: int
    made: int | None


@dataclass(frozen=True, eq=False)
class _Numbered:
    """The classes of all parts, and, by part, the numbers of the classes and kinds solved there."""

    sizes: list[int]
    within: list[tuple[int, ...]]
    classes: list[dict[int, int]]
    kinds: list[dict[int, int]]
    next_kind: Iterator[int] = field(default_factory=count)

    def add(self, part: int, item: _Item, solved: Classes) -> None:
        """Number what a colour of a part is the first to have."""
        known = self.classes[part]
        if item.made is not None:
            known[item.made] = len(self.sizes)
            self.sizes.append(solved.sizes[item.made])
            self.within.append(tuple(known[outer] for outer in solved.within[item.made]))
        if item.kind not in self.kinds[part]:
            self.kinds[part][item.kind] = next(self.next_kind)


class Everywhere:
    """What was found for one of each parts that are alike, for all of them.

    Attributes:
        groups: of parts that are alike.
        group_of: by unit of the parts that were solved, the group that it is of.
        made: the ranges of units that the derivation made, in the order in which they are numbered.
        size: how many units there are with these.
    """

    def __init__(
        self,
        ledger: Ledger,
        groups: Sequence[Sequence[Part]],
        of: Single,
        blocks: Sequence[Blocks],
        moves: Moves,
    ) -> None:
        self._single, self._moves = of, moves
        self.size = ledger.size
        self.made: Ranges = []
        self.groups = _ranges(ledger, groups, of)
        self.group_of = np.empty(of.ledger.size, np.int64)
        for number, group in enumerate(self.groups):
            for start, end in group.own:
                self.group_of[start:end] = number
        self._add_blocks(groups, blocks)

    def _add_blocks(self, groups: Sequence[Sequence[Part]], blocks: Sequence[Blocks]) -> None:
        """Number the units that were made as if they had been made for all parts together."""
        order = []
        for index, item in enumerate(blocks):
            start, end = item.units
            number = int(self.group_of[item.inside])
            self.group_of[start:end] = number
            self.groups[number].own.append(item.units)
            for copy, place in enumerate(self._places(groups[number], item)):
                order.append(((item.turn, *place, index), number, copy, end - start))
        for _, number, copy, size in sorted(order):
            self.made.append((self.size, self.size + size))
            self.groups[number].copies[copy].append(self.made[-1])
            self.size += size

    def _places(self, parts: Sequence[Part], item: Blocks) -> list[tuple[int, int]]:
        """For each part, when its units would have been made in one turn."""
        sources = self._single.sources
        if item.table >= len(sources):
            return [(1, part.births[0]) for part in parts]
        at = parts[0].entries.index(sources[item.table])
        return [(0, part.entries[at]) for part in parts]

    def _parts(self) -> Iterator[tuple[int, Ranges, Ranges, Ints]]:
        """Of every part: its group, its ranges where solved and in all, and the numbers in all.

        The numbers are by unit as it is numbered where solved, and hold for those of the part only,
        until the next part is asked for.
        """
        numbers = np.empty(self.group_of.size, np.int64)
        for number, group in enumerate(self.groups):
            for ranges in group.copies:
                for (start, end), (first, last) in zip(group.own, ranges, strict=True):
                    numbers[start:end] = np.arange(first, last)
                yield number, group.own, ranges, numbers

    @cached_property
    def roots(self) -> Ints:
        """By unit, its representative."""
        found = np.empty(self.size, np.int64)
        for _, own, ranges, numbers in self._parts():
            for (start, end), (first, last) in zip(own, ranges, strict=True):
                found[first:last] = numbers[self._moves.roots[start:end]]
        return found

    @cached_property
    def roles(self) -> Ints:
        """By unit, a number for its role, among those of its part."""
        found = np.empty(self.size, np.int64)
        for _, own, ranges, _ in self._parts():
            for (start, end), (first, last) in zip(own, ranges, strict=True):
                found[first:last] = self._moves.roles[start:end]
        return found

    def record(self, ledger: Ledger) -> None:
        """Write down for all parts what was found: units that were made, ties, and pins.

        Args:
            ledger: with all units.
        """
        for start, end in self.made:
            ledger.fresh(end - start)
        ledger.represent(self.roots)
        for pin in self._single.ledger.pins[self._single.pins :]:
            group_of = self.group_of[pin.units]
            units = [numbers[pin.units[group_of == of]] for of, _, _, numbers in self._parts()]
            ledger.pin(np.concatenate(units), pin.reason)

    @cached_property
    def _numbered(self) -> _Numbered:
        """Classes and kinds, numbered as if all parts had been solved together.

        Of all parts, the next colour is the one with the first unit, among those whose parents had
        their turn.
        """
        solved = self._moves.classes
        items = _items(self._moves, self.group_of, len(self.groups))
        colors = [
            (items[of], numbers[[item.unit for item in items[of]]].tolist())
            for of, _, _, numbers in self._parts()
        ]
        found = _Numbered([], [], [{} for _ in colors], [{} for _ in colors])
        waiting = [(units[0], part, 0) for part, (_, units) in enumerate(colors) if units]
        heapify(waiting)
        while waiting:
            _, part, at = waiting[0]
            own, units = colors[part]
            found.add(part, own[at], solved)
            if at + 1 < len(units):
                heapreplace(waiting, (units[at + 1], part, at + 1))
            else:
                heappop(waiting)
        return found

    @cached_property
    def classes(self) -> Nesting:
        """The classes of all parts."""
        return Nesting(tuple(self._numbered.sizes), tuple(self._numbered.within))

    @cached_property
    def motion(self) -> Motion:
        """The coordinates of all representatives, numbered."""
        solved, numbered = self._moves.motion, self._numbered
        codes = np.full(self.size, RIGID, np.int64)
        if not solved.kinds:
            return Motion(codes, (), solved.starts)
        kinds = sorted(
            (number, _renamed(solved.kinds[kind], numbered.classes[part]))
            for part, own in enumerate(numbered.kinds)
            for kind, number in own.items()
        )
        spans = [math.prod(column.size for column in kind) for _, kind in kinds]
        starts = np.cumsum([0, *spans])[:-1]
        kind_of = solved.kind_of(solved.codes)
        steps = np.zeros(len(solved.kinds), np.int64)
        for (_, own, ranges, _), known in zip(self._parts(), numbered.kinds, strict=True):
            for kind, number in known.items():
                steps[kind] = starts[number] - solved.starts[kind]
            for (low, high), (start, stop) in zip(own, ranges, strict=True):
                of, found = kind_of[low:high], solved.codes[low:high]
                codes[start:stop] = np.where(of >= 0, found + steps[of], RIGID)
        return Motion(codes, tuple(kind for _, kind in kinds), starts)

    def spread(self, structure: Structure, used: Bools) -> Bools:
        """Units that are used, or of which one that they occur with is, in any number of steps.

        Args:
            structure: of the parts that were solved.
            used: by unit.
        """
        found = used.copy()
        tables = _by_group(structure, self.group_of)
        local = np.zeros(self.group_of.size, np.bool_)
        known: dict[tuple[int, bytes], Bools] = {}
        for number, own, ranges, _ in self._parts():
            if number not in tables:
                continue
            given = np.concatenate([used[start:end] for start, end in ranges])
            key = number, np.packbits(given).tobytes()
            at = np.cumsum([0, *(end - start for start, end in own)])
            places = list(zip(own, ranges, pairwise(at.tolist()), strict=True))
            if key not in known:
                for (start, end), _, (low, high) in places:
                    local[start:end] = given[low:high]
                known[key] = spread_use(tables[number], local)
            for (start, end), (first, last), _ in places:
                found[first:last] = known[key][start:end]
        return found


def _renamed(kind: Sequence[Column], numbers: Mapping[int, int]) -> tuple[Column, ...]:
    return tuple(Column(numbers[c.index], c.size, c.within) for c in kind)


def _ranges(ledger: Ledger, groups: Sequence[Sequence[Part]], of: Single) -> list[Group]:
    kept = sorted(birth for group in groups for birth in group[0].births)
    number = {birth: index for index, birth in enumerate(kept)}
    return [
        Group(
            [of.ledger.births[number[birth]] for birth in group[0].births],
            [[ledger.births[birth] for birth in part.births] for part in group],
        )
        for group in groups
    ]


def _items(moves: Moves, group_of: Ints, groups: int) -> list[list[_Item]]:
    """The colours of each group, parents first."""
    found: list[list[_Item]] = [[] for _ in range(groups)]
    kinds = {columns: kind for kind, columns in enumerate(moves.motion.kinds)}
    made = 0
    for place in moves.classes.coordinates.values():
        unit = int(place.units[0])
        new = place.columns[-1].index == made
        found[group_of[unit]].append(_Item(unit, kinds[place.columns], made if new else None))
        made += new
    return found


def _by_group(structure: Structure, group_of: Ints) -> dict[int, list[Table]]:
    found: dict[int, list[Table]] = {}
    for table in meetings(structure):
        largest = int(table.max(initial=RIGID))
        if largest >= 0:
            found.setdefault(int(group_of[largest]), []).append(table)
    return found
