"""Check that the permutations of the classes map everything that was recorded onto itself.

Classes are found in terms of representatives: units that were tied count as one. What was recorded
is about units as they were before. Here a unit moves to the one that has its own role and the moved
coordinates, and every recorded table has to be closed under that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from fxrebasin.passes.fields.labels import RIGID
from fxrebasin.passes.fields.rows import (
    Ints,
    Table,
    alike,
    all_differ,
    distinct,
    distinct_rows,
    row_codes,
)
from fxrebasin.passes.group.classes import (
    Classes,
    Column,
    IrregularError,
    Motion,
    combine,
    motion,
)


@dataclass(frozen=True, eq=False)
class Moves:
    """Where units go: to the coordinates that the classes give, in the role that they have.

    Attributes:
        classes: in terms of representatives.
        roots: by unit, its representative.
        roles: by unit, a number for its role.
    """

    classes: Classes
    roots: Ints
    roles: Ints

    @cached_property
    def motion(self) -> Motion:
        """The coordinates of all representatives, numbered."""
        return motion(self.classes)

    @cached_property
    def codes(self) -> Ints:
        """By unit, the number of its coordinates, `RIGID` when it cannot move."""
        return self.motion.codes[self.roots]

    @cached_property
    def kinds(self) -> Ints:
        """By index of a colour, how its coordinates are made up; last, that of what cannot move."""
        known = {columns: kind for kind, columns in enumerate(self.motion.kinds)}
        places = (self.classes.coordinates[index] for index in range(len(self.classes.coordinates)))
        return np.array([*(known[place.columns] for place in places), RIGID], np.int64)


def check_roles(moves: Moves, known: int) -> None:
    """Every role is that of just one unit at all coordinates of its class.

    Args:
        moves: where units go.
        known: how many units there were before those that only stand for others.

    Raises:
        IrregularError: two units would have to go to one place, or one to none.
    """
    colors = moves.classes.colors[:known]
    units = np.flatnonzero(colors >= 0)
    if not units.size:
        return
    role = row_codes([colors[units], moves.roles[units]])
    count = np.bincount(role)
    lacking = count[role] != moves.classes.members[colors[units]]
    if not lacking.any() and _fill_places(moves, role, count, moves.roots[units]):
        return
    place = role * moves.roots.size + moves.roots[units]
    if not all_differ(place):
        code = row_codes([place])
        repeated = np.bincount(code)[code] > 1
        raise IrregularError(units[repeated], "tied to another unit of its own axis")
    raise IrregularError(units[lacking], "plays a part that not all of its class play")


def _fill_places(moves: Moves, role: Ints, count: Ints, roots: Ints) -> bool:
    """Whether all places are taken, if there are as many for each role as it has units."""
    rank = moves.classes.ranks[roots]
    taken = np.zeros(role.size, dtype=np.bool_)
    taken[(np.cumsum(count) - count)[role] + rank] = True
    return bool(taken.all())


def check_closed(moves: Moves, table: Table) -> None:
    """A permutation of the classes maps the tuples of a relation onto tuples of it.

    Raises:
        IrregularError: the tuples are not the full grid over the coordinates they have. It names
            the labels of one column, the one with the fewest, since the others may do without them.
    """
    if not table.size:
        return
    columns = list(table.T)
    colors = [_of_labels(moves.classes.colors, column, RIGID) for column in columns]
    codes = np.stack([_of_labels(moves.codes, column, RIGID) for column in columns]).T
    tags = np.stack([_tags(moves, *pair) for pair in zip(columns, colors, strict=True)]).T
    kinds = np.stack([moves.kinds[column] for column in colors]).T
    part = row_codes(colors)
    irregular = [
        number
        for rows in alike(list(kinds.T))
        if (kinds[rows[0]] >= 0).any()
        for number in _irregular(moves.motion, kinds[rows[0]], codes[rows], tags[rows], part[rows])
    ]
    if irregular:
        rows = np.flatnonzero(part == min(irregular))
        moving = [index for index, own in enumerate(colors) if own[rows[0]] >= 0]
        free = (distinct(table[rows, index]) for index in moving)
        fewest = min(free, key=lambda units: units.size)
        raise IrregularError(fewest, "occurs together with others irregularly")


def _of_labels(values: Ints, labels: Ints, rigid: int) -> Ints:
    """Values of units, and another for rigid labels."""
    if labels.min() >= 0:
        return values[labels]
    return np.where(labels >= 0, values[np.maximum(labels, 0)], rigid)


def _tags(moves: Moves, labels: Ints, colors: Ints) -> Ints:
    """Roles of units that move, and labels that cannot."""
    if labels.max() < 0:
        return labels
    return np.where(colors >= 0, moves.roles[np.maximum(labels, 0)], labels)


def _irregular(motion: Motion, kinds: Ints, codes: Table, tags: Table, part: Ints) -> list[int]:
    """The parts whose tuples are not the full grid of their coordinates with each of their tags.

    Args:
        kinds: for each column, how its coordinates are made up; the same in all rows.
        codes: the numbers of the coordinates.
        tags: roles, or labels that cannot move.
        part: by row; tuples of different parts have nothing to do with each other.
    """
    blocks = [
        (motion.kinds[kind], motion.coordinates(int(kind), column))
        for kind, column in zip(kinds, codes.T, strict=True)
        if kind >= 0
    ]
    if (tags == tags[0]).all() and (part == part[0]).all():
        columns, along = combine(blocks)
        sizes = [column.size for column in columns]
        occurring = np.bincount(np.ravel_multi_index(tuple(along), sizes), minlength=1)
        return [] if np.count_nonzero(occurring) == math.prod(sizes) else [int(part[0])]
    tag = row_codes(list(tags.T))
    found = []
    for rows in alike(_shared(blocks, part)):
        columns, along = combine([(own, [item[rows] for item in items]) for own, items in blocks])
        full = math.prod(column.size for column in columns)
        tuples = distinct_rows([part[rows], *along, tag[rows]])[:, 0]
        alone = distinct_rows([part[rows], tag[rows]])[:, 0]
        numbers, count = np.unique(tuples, return_counts=True)
        expected = full * np.unique(alone, return_counts=True)[1]
        found += numbers[count != expected].tolist()
    return found


def _shared(blocks: Sequence[tuple[tuple[Column, ...], list[Ints]]], part: Ints) -> list[Ints]:
    """For each two coordinates of one class, by row, whether they agree in all rows of its part."""
    found = [np.zeros(part.size, np.int64)]
    all_columns = [pair for own, items in blocks for pair in zip(own, items, strict=True)]
    for (one, left), (other, right) in combinations(all_columns, 2):
        if one.index == other.index:
            differ = np.bincount(part, left != right, int(part.max()) + 1) > 0
            found.append(differ[part].astype(np.int64))
    return found
