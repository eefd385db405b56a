"""Check that the permutations of the classes map everything that was recorded onto itself.

Classes are found in terms of representatives: units that were tied count as one. What was recorded
is about units as they were before. Here a unit moves to the one that has its own role and the moved
coordinates, and every recorded table has to be closed under that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxrebasin.passes.fields.labels import RIGID
from fxrebasin.passes.fields.rows import Ints, Table, all_differ, count_rows, distinct, row_codes
from fxrebasin.passes.group.classes import Classes, Column, IrregularError, combine


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
        alike = np.bincount(code)[code] > 1
        raise IrregularError(units[alike], "tied to another unit of its own axis")
    lacking = count[role] != moves.classes.members[colors[units]]
    if lacking.any():
        raise IrregularError(units[lacking], "plays a part that not all of its class play")


def check_closed(moves: Moves, table: Table) -> None:
    """A permutation of the classes maps the tuples of a relation onto tuples of it.

    Raises:
        IrregularError: the tuples are not the full grid over the coordinates they have. It names
            the labels of one column, the one with the fewest, since the others may do without them.
    """
    for colors, part in _parts(table, moves.colors(table)):
        if (colors < 0).all():
            continue
        columns, along = _coordinates(moves, colors, part)
        tag = row_codes(
            [
                column if color < 0 else moves.roles[column]
                for color, column in zip(colors, part.T, strict=True)
            ]
        )
        full = int(np.prod([column.size for column in columns], dtype=np.int64))
        if count_rows([*along, tag]) != full * (int(tag.max()) + 1):
            free = (distinct(column) for column in part[:, colors >= 0].T)
            fewest = min(free, key=lambda units: units.size)
            raise IrregularError(fewest, "occurs together with others irregularly")


def _parts(table: Table, colors: Table) -> Iterator[tuple[Ints, Table]]:
    """Rows of a table by the colours of their labels, and these."""
    if not table.size:
        return
    if (colors == colors[:1]).all():
        yield colors[0], table
        return
    part = row_codes(list(colors.T))
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part))
    for rows in np.split(order, ends[:-1]):
        yield colors[rows[0]], table[rows]


def _coordinates(
    moves: Moves, colors: Ints, part: Table
) -> tuple[tuple[Column, ...], list[npt.NDArray[np.int64]]]:
    """Coordinates of rows whose labels have the same colours in each column."""
    blocks = []
    for color, column in zip(colors, part.T, strict=True):
        if color >= 0:
            place = moves.classes.coordinates[int(color)]
            blocks.append((place.columns, place.of(moves.roots[column]).T))
    return combine(blocks)
