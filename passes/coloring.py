"""Colour refinement: units of one colour have the same role in everything that was recorded.

The one-dimensional Weisfeiler-Leman algorithm, with 64-bit hashes as colours. Tables are stacked,
so that a round takes some operations on a few long arrays and not on hundreds of short ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxrebasin.passes.entries import Edge
from fxrebasin.passes.ledger import Ledger
from fxrebasin.passes.rows import Hashes, Ints, Table, distinct, mix
from fxrebasin.passes.structure import Structure

_ROUNDS = 64


@dataclass(frozen=True, eq=False)
class _Stack:
    """The rows of all tables that have as many columns, and a salt for each row: its table's."""

    rows: Table
    salts: Ints


def color(ledger: Ledger, structure: Structure, seen: Hashes, pinned: Ints) -> Hashes:
    """The colour of every unit (of a tie, that of its representative).

    Args:
        ledger: for representatives.
        structure: what units occur with.
        seen: the occurrences of units before any tie.
        pinned: units that do not move.
    """
    roots = ledger.compress()
    colors = _initial(seen, roots, pinned)
    stacks = _stacked([table for table in structure.tables if (table >= 0).any()])
    edges = _stacked_edges(structure.edges)
    canonical = np.flatnonzero(roots == np.arange(roots.size))
    before = distinct(colors[canonical]).size
    for _ in range(_ROUNDS):
        colors = _with_occurrences(colors, mix(colors, 5), stacks) + _beside(colors, edges)
        now = distinct(colors[canonical]).size
        if now == before:
            break
        before = now
    return colors[roots]


def marks(ledger: Ledger) -> Hashes:
    """What sets units apart that may have been tied: their birth, the selections that they fell
    into, and the same of the units that they were tied to directly.

    Args:
        ledger: all units.
    """
    own = _own_marks(ledger)
    if not ledger.ties:
        return own
    one, two = (np.concatenate(side) for side in zip(*ledger.ties, strict=True))
    result = own
    before = distinct(result).size
    for _ in range(_ROUNDS):
        spread = mix(own, 7)
        np.add.at(spread, one, mix(result[two], 8))
        np.add.at(spread, two, mix(result[one], 8))
        now = distinct(spread).size
        if now <= before:
            return result
        result, before = spread, now
    return result


def _own_marks(ledger: Ledger) -> Hashes:
    births = np.array([end - start for start, end in ledger.births], np.int64)
    result = mix(np.repeat(np.arange(births.size), births), 1)
    if ledger.members:
        selections = [values.reshape(-1).numpy() for values in ledger.members]
        labels = np.concatenate(selections)
        index = np.repeat(np.arange(len(selections)), [item.size for item in selections])
        free = labels >= 0
        np.add.at(result, labels[free], mix(index[free], 2))
    return result


def occurrences(own: Hashes, structure: Structure) -> Hashes:
    """The marks of units, and of what each occurs with, both before any tie.

    Args:
        own: the marks of units.
        structure: what units occur with.
    """
    return _with_occurrences(own, mix(own, 3), _stacked(structure.raw))


def _stacked(tables: Sequence[Table]) -> list[_Stack]:
    by_width: dict[int, list[tuple[int, Table]]] = {}
    for index, table in enumerate(tables):
        by_width.setdefault(table.shape[1], []).append((index, table))
    return [
        _Stack(
            np.concatenate([table for _, table in items]),
            np.repeat([8 + 64 * index for index, _ in items], [len(table) for _, table in items]),
        )
        for items in by_width.values()
    ]


def _with_occurrences(colors: Hashes, base: Hashes, stacks: Iterable[_Stack]) -> Hashes:
    """A copy of hashes of units, plus one for each row that a unit is in."""
    result = base.copy()
    for stack in stacks:
        salts = [stack.salts + column for column in range(stack.rows.shape[1])]
        seen = np.zeros(stack.salts.size, dtype=np.uint64)
        for column, salt in zip(stack.rows.T, salts, strict=True):
            seen += mix(_label_colors(colors, column), salt)
        for column, salt in zip(stack.rows.T, salts, strict=True):
            free = column >= 0
            np.add.at(result, column[free], mix(seen[free], salt[free] + 31))
    return result


def _stacked_edges(edges: Sequence[Edge]) -> tuple[Ints, Ints, Ints]:
    """Children, parents, and the number of the edge that each pair is of."""
    empty = np.zeros(0, np.int64)
    return (
        np.concatenate([empty, *(edge.children for edge in edges)]),
        np.concatenate([empty, *(edge.parents for edge in edges)]),
        np.repeat(np.arange(len(edges)), [edge.children.size for edge in edges]),
    )


def _beside(colors: Hashes, edges: tuple[Ints, Ints, Ints]) -> Hashes:
    """For each unit, a hash of the colours of its parents and children."""
    children, parents, index = edges
    result = np.zeros_like(colors)
    np.add.at(result, children, mix(colors[parents], -1 - 2 * index))
    np.add.at(result, parents, mix(colors[children], -2 - 2 * index))
    return result


def _initial(seen: Hashes, roots: Ints, pinned: Ints) -> Hashes:
    """What all units tied to one occur with; pinned units are all different.

    Looked at before ties: units inside two parents that got tied must not be exchanged across
    the tie.
    """
    colors = np.zeros(seen.size, dtype=np.uint64)
    np.add.at(colors, roots, seen)
    fixed = distinct(roots[pinned])
    np.add.at(colors, fixed, mix(fixed, 4))
    return colors


def _label_colors(colors: Hashes, labels: Ints) -> Hashes:
    """Colours of units; rigid labels are colours of their own."""
    if labels.size and labels.min() >= 0:
        return colors[labels]
    return np.where(labels >= 0, colors[np.maximum(labels, 0)], mix(labels, 6))
