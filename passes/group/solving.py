"""Classes that everything recorded is closed under, from relations to positions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Bools, Ints, distinct, numbers_of
from fxrebasin.passes.group.classes import (
    IrregularError,
    Motion,
    Nesting,
    TwiceInsideError,
    classify,
)
from fxrebasin.passes.group.closure import Moves, check_closed, check_roles
from fxrebasin.passes.group.coloring import color, marks, roles
from fxrebasin.passes.group.copies import Everywhere
from fxrebasin.passes.group.grids import UnnamedGroup
from fxrebasin.passes.group.laying import Placing
from fxrebasin.passes.group.parts import Entry, Part, entries_of, parts_of
from fxrebasin.passes.group.reading import meetings, spread_use
from fxrebasin.passes.group.relations import compact
from fxrebasin.passes.group.single import single
from fxrebasin.passes.group.structure import Structure, derive

_Laid = TypeVar("_Laid")
Laid = dict[str, list[UnnamedGroup]]


@dataclass(frozen=True, eq=False)
class Solved:
    """What units may do.

    Attributes:
        classes: of units.
        motion: their coordinates.
        laid: which positions of state tensors they are at.
        spread: adds to units that are used those that occur with them.
    """

    classes: Nesting
    motion: Motion
    laid: Laid
    spread: Callable[[Bools], Bools]


def solved(
    ledger: Ledger,
    met: Sequence[Sequence[Ints]],
    of_state: Sequence[list[Ints]],
    lay: Callable[[Placing], Laid],
) -> Solved:
    """Solve what was recorded; what was recorded of several parts alike just once.

    Args:
        ledger: all but relations; what is found is added.
        met: labels that meet on tensors.
        of_state: relations that were made small already.
        lay: lays the classes onto tensors, and raises an `IrregularError` where they do not fit.
    """
    entries = entries_of(ledger, met, of_state)
    groups = parts_of(ledger, entries)
    if any(len(group) > 1 for group in groups):
        try:
            return _solved_once(ledger, entries, groups, lay)
        except _UnlikeError:
            pass
    return solved_in_full(ledger, met, of_state, lay)


def solved_in_full(
    ledger: Ledger,
    met: Sequence[Sequence[Ints]],
    of_state: Sequence[list[Ints]],
    lay: Callable[[Placing], Laid],
) -> Solved:
    """The same, without a look at what is alike.

    Args:
        ledger: all but relations; what is found is added.
        met: labels that meet on tensors.
        of_state: relations that were made small already.
        lay: lays the classes onto tensors, and raises an `IrregularError` where they do not fit.
    """
    structure = derive(ledger, [*(part for columns in met for part in compact(columns)), *of_state])
    moves, laid = solve(ledger, structure, lay)
    return Solved(moves.classes, moves.motion, laid, partial(spread_use, meetings(structure)))


class _UnlikeError(FxRebasinError):
    """Parts of which the same was recorded do not fit onto tensors."""


def _solved_once(
    ledger: Ledger,
    entries: Sequence[Entry],
    groups: Sequence[Sequence[Part]],
    lay: Callable[[Placing], Laid],
) -> Solved:
    one = single(ledger, entries, groups)
    structure = derive(one.ledger, one.relations)

    def lay_all(moves: Moves) -> tuple[Everywhere, Laid]:
        everywhere = Everywhere(ledger, groups, one, structure.blocks, moves)
        try:
            return everywhere, lay(everywhere)
        except IrregularError as error:
            raise _UnlikeError(str(error)) from error

    _, (everywhere, laid) = solve(one.ledger, structure, lay_all)
    everywhere.record(ledger)
    spread = partial(everywhere.spread, structure)
    return Solved(everywhere.classes, everywhere.motion, laid, spread)


def solve(
    ledger: Ledger, structure: Structure, lay: Callable[[Moves], _Laid]
) -> tuple[Moves, _Laid]:
    """Classes that everything recorded is closed under; what is irregular gets pinned.

    Units that were tied are told apart by how they were made, or, where that does not tell enough,
    by all that they occurred with.

    Args:
        ledger: units, pins and selections; those that are found to be needed are added.
        structure: what follows from its relations.
        lay: lays the classes onto tensors, and raises an `IrregularError` where they do not fit.
    """
    tags, told = marks(ledger), False
    while True:
        roots = ledger.compress()
        pinned = [pin.units for pin in ledger.pins]
        rigid = distinct(np.concatenate(pinned)) if pinned else np.zeros(0, np.int64)
        try:
            colors = color(ledger, structure, tags, rigid)
            classes = classify(structure, colors, roots)
            numbers = numbers_of(np.where(classes.colors < 0, tags, tags ^ colors))
            moves = Moves(classes, roots, numbers)
            check_roles(moves, structure.known)
            for table in structure.raw:
                check_closed(moves, table)
            return moves, lay(moves)
        except IrregularError as error:
            if told:
                ledger.pin(error.units, error.reason)
            else:
                tags, told = roles(ledger, structure), True
        except TwiceInsideError as error:
            for part in error.parts:
                ledger.remember_units(part)
            tags, told = roles(ledger, structure), True
