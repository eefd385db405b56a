"""From coloured units to permutation classes, and the coordinates of every unit in them.

Units of one colour that move inside the same parents can be exchanged. Working from parents to
children, every unit gets coordinates: its index in a class, preceded by the coordinates of its
parents. A unit that is the only one of its colour in its parents has just theirs: it follows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise

import networkx as nx
import numpy as np

from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.fields.labels import RIGID
from fxrebasin.passes.fields.rows import Hashes, Ints, numbers_of
from fxrebasin.passes.group.structure import Structure


@dataclass(frozen=True)
class Column:
    """One coordinate: an index into a class; `within` are the columns that select its copy."""

    index: int
    size: int
    within: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Units of one colour and their coordinates, one row per unit (sorted by unit)."""

    columns: tuple[Column, ...]
    units: Ints
    rows: Ints

    def of(self, units: Ints) -> Ints:
        """Coordinates of units of this colour, one row each."""
        return np.asarray(self.rows[np.searchsorted(self.units, units)])


@dataclass(frozen=True, eq=False)
class Nesting:
    """How large all classes are, and which are inside which.

    Attributes:
        sizes: units per copy of each class.
        within: for each class, the classes that select its copy.
    """

    sizes: tuple[int, ...]
    within: tuple[tuple[int, ...], ...]

    def count(self, index: int) -> int:
        """Number of copies of a class."""
        return math.prod(self.sizes[outer] for outer in self.within[index])


@dataclass(frozen=True, eq=False)
class Classes(Nesting):
    """All classes; `colors[u]` finds the coordinates of unit u (rigid units have none).

    Attributes:
        coordinates: by index of a colour, parents first.
        colors: by unit, the index of its colour, `RIGID` when it cannot move.
    """

    coordinates: dict[int, Coordinates]
    colors: Ints

    @cached_property
    def members(self) -> Ints:
        """By index of a colour, how many representatives have it."""
        places = (self.coordinates[index] for index in range(len(self.coordinates)))
        return np.array([place.units.size for place in places], np.int64)

    @cached_property
    def ranks(self) -> Ints:
        """By representative that moves, how many of its colour come before it."""
        found = np.zeros(self.colors.size, np.int64)
        places = [self.coordinates[index].units for index in range(len(self.coordinates))]
        if places:
            starts = np.cumsum(self.members) - self.members
            own = np.arange(self.members.sum()) - np.repeat(starts, self.members)
            found[np.concatenate(places)] = own
        return found


@dataclass(frozen=True, eq=False)
class Motion:
    """How units move, as numbers: units with the same coordinates move together.

    Attributes:
        codes: by unit, the number of its coordinates, `RIGID` when it cannot move.
        kinds: the different lists of columns.
        starts: the first number of each kind; numbers run through its grid in row-major order.
    """

    codes: Ints
    kinds: tuple[tuple[Column, ...], ...]
    starts: Ints

    def kind_of(self, codes: Ints) -> Ints:
        """The kind that numbers belong to; `RIGID` for what cannot move."""
        first, last = np.searchsorted(self.starts, [codes.min(), codes.max()], side="right") - 1
        if first == last:
            return np.full(codes.size, first)
        return np.where(codes >= 0, np.searchsorted(self.starts, codes, side="right") - 1, RIGID)

    def coordinates(self, kind: int, codes: Ints) -> list[Ints]:
        """Coordinates of numbers of one kind, one array for each column."""
        sizes = [column.size for column in self.kinds[kind]]
        grid = np.unravel_index(np.arange(math.prod(sizes)), sizes)
        inner = codes - self.starts[kind]
        return [np.asarray(along, dtype=np.int64).take(inner) for along in grid]


def motion(classes: Classes) -> Motion:
    """Number the coordinates of all units that move."""
    codes = np.full(classes.colors.size, RIGID, dtype=np.int64)
    starts: dict[tuple[Column, ...], int] = {}
    end = 0
    for place in classes.coordinates.values():
        sizes = [column.size for column in place.columns]
        if place.columns not in starts:
            starts[place.columns] = end
            end += int(np.prod(sizes, dtype=np.int64))
        inner = np.ravel_multi_index(tuple(place.rows.T), sizes)
        codes[place.units] = starts[place.columns] + inner
    return Motion(codes, tuple(starts), np.array(list(starts.values()), dtype=np.int64))


class IrregularError(FxRebasinError):
    """Some units do not form a regular structure; they have to be pinned."""

    def __init__(self, units: Ints, reason: str) -> None:
        super().__init__(reason)
        self.units = units
        self.reason = reason


class TwiceInsideError(FxRebasinError):
    """Units lie inside two units of one class, so that no class of their own can say in which copy.

    Attributes:
        parts: the units by their rank inside; told apart, they follow the units that they are in.
    """

    def __init__(self, parts: Sequence[Ints]) -> None:
        super().__init__("units inside two units of one class")
        self.parts = tuple(parts)


def classify(structure: Structure, colors: Hashes, roots: Ints) -> Classes:
    """Classes and coordinates, parents first.

    Raises:
        IrregularError: parents do not have their children in a regular grid.
        TwiceInsideError: children would be a class inside the same class twice.
    """
    canonical = np.flatnonzero(roots == np.arange(roots.size))
    index_of_color, members = _by_color(colors, canonical)
    parents = _parent_edges(structure, index_of_color, members)
    builder = _Builder(index_of_color)
    order = _parents_first(members, parents)
    for item in order:
        builder.add(item, members[item], parents.get(item, []))
    return Classes(
        tuple(builder.sizes), tuple(builder.within), builder.coordinates, index_of_color[roots]
    )


def _by_color(colors: Hashes, canonical: Ints) -> tuple[Ints, list[Ints]]:
    """Indices of the colours that more than one unit has, in order of their first unit."""
    inverse = numbers_of(colors[canonical])
    counts = np.bincount(inverse)
    first = np.empty_like(counts)
    first[inverse[::-1]] = np.arange(inverse.size)[::-1]
    several = np.flatnonzero(counts > 1)
    several = several[np.argsort(first[several])]
    rank = np.full(counts.size, RIGID, dtype=np.int64)
    rank[several] = np.arange(several.size)
    index_of_color = np.full(colors.size, RIGID, dtype=np.int64)
    index_of_color[canonical] = rank[inverse]
    order = np.argsort(rank[inverse], kind="stable")
    moving = order[rank[inverse][order] >= 0]
    sizes = counts[several]
    members = np.split(canonical[moving], np.cumsum(sizes)[:-1]) if several.size else []
    return index_of_color, members


def _parent_edges(
    structure: Structure, index_of_color: Ints, members: Sequence[Ints]
) -> dict[int, list[tuple[int, Ints]]]:
    """For each colour, its edges to moving parents: parent colour and parent of each member."""
    found: dict[int, list[tuple[int, Ints]]] = {}
    for edge in structure.edges:
        above, colors = index_of_color[edge.parents], index_of_color[edge.children]
        moving = np.flatnonzero((colors >= 0) & (above >= 0))
        moving = moving[np.lexsort((edge.children[moving], colors[moving]))]
        children, parents = edge.children[moving], edge.parents[moving]
        ends = np.flatnonzero(np.diff(colors[moving], append=RIGID)) + 1
        for start, end in pairwise([0, *ends.tolist()]):
            own, item = children[start:end], int(colors[moving[start]])
            if not np.array_equal(own, members[item]):
                raise IrregularError(own, "only some units of a role lie inside others")
            place = int(above[moving[start]]), parents[start:end]
            found.setdefault(item, []).append(place)
    return found


def _parents_first(
    members: Sequence[Ints], parents: dict[int, list[tuple[int, Ints]]]
) -> list[int]:
    left = [len({above for above, _ in parents.get(item, ())}) for item in range(len(members))]
    children: dict[int, list[int]] = {}
    for item, edges in parents.items():
        for above in dict.fromkeys(above for above, _ in edges):
            children.setdefault(above, []).append(item)
    ready = [item for item, count in enumerate(left) if not count]
    found = []
    while ready:
        item = heappop(ready)
        found.append(item)
        for child in children.get(item, ()):
            left[child] -= 1
            if not left[child]:
                heappush(ready, child)
    if len(found) < len(members):
        graph = nx.DiGraph([(above, child) for above, own in children.items() for child in own])
        cycle = [above for above, _ in nx.find_cycle(graph)]
        units = np.concatenate([members[item] for item in cycle])
        raise IrregularError(units, "units that lie inside each other in a circle")
    return found


class _Builder:
    """Accumulates classes while colours are visited, parents first."""

    def __init__(self, index_of_color: Ints) -> None:
        self.index_of_color = index_of_color
        self.sizes: list[int] = []
        self.within: list[tuple[int, ...]] = []
        self.coordinates: dict[int, Coordinates] = {}
        self._alike: dict[object, tuple[tuple[Column, ...], Ints, Ints | None]] = {}

    def add(self, item: int, units: Ints, parents: Sequence[tuple[int, Ints]]) -> None:
        key = tuple((above, inside.tobytes()) for above, inside in parents) or units.size
        if key not in self._alike:
            self._alike[key] = self._placed(units, parents)
        columns, rows, rank = self._alike[key]
        if rank is not None:
            if len({column.index for column in columns}) < len(columns):
                raise TwiceInsideError([units[rank == value] for value in range(rank.max() + 1)])
            self.sizes.append(int(rank.max()) + 1)
            self.within.append(tuple(column.index for column in columns))
            new = Column(len(self.sizes) - 1, self.sizes[-1], tuple(range(len(columns))))
            columns, rows = (*columns, new), np.concatenate([rows, rank[:, None]], axis=1)
        self.coordinates[item] = Coordinates(columns, units, rows)

    def _placed(
        self, units: Ints, parents: Sequence[tuple[int, Ints]]
    ) -> tuple[tuple[Column, ...], Ints, Ints | None]:
        """The coordinates that parents give, and which of several at the same ones each unit is."""
        columns, rows = self._inherited(units, parents)
        sizes = [column.size for column in columns]
        tuple_of = np.ravel_multi_index(tuple(rows.T), sizes) if columns else np.zeros_like(units)
        counts = np.bincount(tuple_of, minlength=math.prod(sizes))
        if (counts != counts[0]).any():
            outer = [self.coordinates[above].units for above, _ in parents]
            fewest = min(outer, key=lambda found: found.size, default=units)
            raise IrregularError(fewest, "an irregular grid of units")
        return columns, rows, _rank_within(tuple_of) if counts[0] > 1 else None

    def _inherited(
        self, units: Ints, parents: Sequence[tuple[int, Ints]]
    ) -> tuple[tuple[Column, ...], Ints]:
        """The coordinates that units have from their parents, one row each."""
        if len(parents) == 1:
            place = self.coordinates[parents[0][0]]
            return place.columns, place.of(parents[0][1])
        blocks = []
        for above, parent_units in parents:
            place = self.coordinates[above]
            blocks.append((place.columns, place.of(parent_units).T))
        columns, contents = combine(blocks)
        return columns, np.stack(contents).T if contents else np.zeros((units.size, 0), np.int64)


def _rank_within(group: Ints) -> Ints:
    """For each element, how many earlier ones are in its group."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    lengths = np.diff(np.append(starts, group.size))
    rank = np.empty(group.size, dtype=np.int64)
    rank[order] = np.arange(group.size) - np.repeat(starts, lengths)
    return rank


def combine(
    blocks: Sequence[tuple[tuple[Column, ...], Iterable[Ints]]],
) -> tuple[tuple[Column, ...], list[Ints]]:
    """Join coordinates of aligned units; a coordinate that two of them share is kept once.

    Args:
        blocks: columns, and an array for each.
    """
    columns: list[Column] = []
    contents: list[Ints] = []
    for block_columns, block in blocks:
        position: list[int] = []
        for column, content in zip(block_columns, block, strict=True):
            within = tuple(position[outer] for outer in column.within)
            wanted = Column(column.index, column.size, within)
            for index, (other, known) in enumerate(zip(columns, contents, strict=True)):
                if other == wanted and np.array_equal(known, content):
                    position.append(index)
                    break
            else:
                columns.append(wanted)
                contents.append(content)
                position.append(len(columns) - 1)
    return tuple(columns), contents
