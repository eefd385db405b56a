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

    def colors(self, table: Table) -> Table:
        """By label, the index of its colour; `RIGID` when it cannot move."""
        return np.where(table >= 0, self.classes.colors[np.maximum(table, 0)], RIGID)


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
    place = role * moves.roots.size + moves.roots[units]
    if not all_differ(place):
        code = row_codes([place])
        repeated = np.bincount(code)[code] > 1
        raise IrregularError(units[repeated], "tied to another unit of its own axis")
    lacking = count[role] != moves.classes.members[colors[units]]
    if lacking.any():
        raise IrregularError(units[lacking], "plays a part that not all of its class play")


def check_closed(moves: Moves, table: Table) -> None:
    """A permutation of the classes maps the tuples of a relation onto tuples of it.

    Raises:
        IrregularError: the tuples are not the full grid over the coordinates they have. It names
            the labels of one column, the one with the fewest, since the others may do without them.
    """
    if not table.size:
        return
    colors = moves.colors(table)
    part = row_codes(list(colors.T))
    units = np.maximum(table, 0)
    codes = np.where(table >= 0, moves.motion.codes[moves.roots[units]], RIGID)
    tags = np.where(colors >= 0, moves.roles[units], table)
    kinds = moves.motion.kind_of(codes.reshape(-1)).reshape(codes.shape)
    irregular = [
        number
        for rows in alike(list(kinds.T))
        if (kinds[rows[0]] >= 0).any()
        for number in _irregular(moves.motion, kinds[rows[0]], codes[rows], tags[rows], part[rows])
    ]
    if irregular:
        rows = np.flatnonzero(part == min(irregular))
        free = (distinct(column) for column in table[rows][:, colors[rows[0]] >= 0].T)
        fewest = min(free, key=lambda units: units.size)
        raise IrregularError(fewest, "occurs together with others irregularly")


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
