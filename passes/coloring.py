"""Colour refinement: units of one colour have the same role in everything that was recorded.

The one-dimensional Weisfeiler-Leman algorithm, with 64-bit hashes as colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fxrebasin.passes.entries import Edge
from fxrebasin.passes.ledger import Ledger
from fxrebasin.passes.rows import Hashes, Ints, Table, mix
from fxrebasin.passes.structure import Structure

_ROUNDS = 64


def color(ledger: Ledger, structure: Structure, pinned: Ints) -> Hashes:
    """The colour of every unit (of a tie, that of its representative)."""
    roots = ledger.compress()
    colors = _initial(ledger, structure, roots, pinned)
    tables = [table for table in structure.tables if (table >= 0).any()]
    canonical = np.flatnonzero(roots == np.arange(roots.size))
    distinct = np.unique(colors[canonical]).size
    for _ in range(_ROUNDS):
        colors = _refined(colors, tables, structure.edges)
        now = np.unique(colors[canonical]).size
        if now == distinct:
            break
        distinct = now
    return colors[roots]


def marks(ledger: Ledger) -> Hashes:
    """What sets units apart that may have been tied: their birth, the selections that they fell
    into, and the same of the units that they were tied to directly.
    """
    own = _own_marks(ledger)
    result = own
    distinct = np.unique(result).size
    for _ in range(_ROUNDS):
        spread = mix(own, 7)
        with np.errstate(over="ignore"):
            for one, two in ledger.ties:
                np.add.at(spread, one, mix(result[two], 8))
                np.add.at(spread, two, mix(result[one], 8))
        now = np.unique(spread).size
        if now <= distinct:
            return result
        result, distinct = spread, now
    return result


def _own_marks(ledger: Ledger) -> Hashes:
    found = np.zeros(ledger.size, dtype=np.int64)
    for index, (start, end) in enumerate(ledger.births):
        found[start:end] = index
    result = mix(found, 1)
    with np.errstate(over="ignore"):
        for index, values in enumerate(ledger.members):
            labels = values.reshape(-1).numpy()
            labels = labels[labels >= 0]
            np.add.at(result, labels, mix(np.full(labels.size, index), 2))
    return result


def occurrences(ledger: Ledger, structure: Structure) -> Hashes:
    """The marks of units, and of what each occurs with, both before any tie."""
    own = marks(ledger)
    result = mix(own, 3)
    with np.errstate(over="ignore"):
        for index, table in enumerate(structure.raw):
            salts = [8 + 64 * index + column for column in range(table.shape[1])]
            seen = np.zeros(table.shape[0], dtype=np.uint64)
            for column, salt in zip(table.T, salts, strict=True):
                seen = seen + mix(_label_colors(own, column), salt)
            for column, salt in zip(table.T, salts, strict=True):
                free = column >= 0
                np.add.at(result, column[free], mix(seen[free], salt + 31))
    return result


def _initial(ledger: Ledger, structure: Structure, roots: Ints, pinned: Ints) -> Hashes:
    """What all units tied to one occur with; pinned units are all different.

    Looked at before ties: units inside two parents that got tied must not be exchanged across
    the tie.
    """
    colors = np.zeros(ledger.size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        np.add.at(colors, roots, occurrences(ledger, structure))
        fixed = np.unique(roots[pinned])
        np.add.at(colors, fixed, mix(fixed, 4))
    return colors


def _refined(colors: Hashes, tables: Sequence[Table], edges: Iterable[Edge]) -> Hashes:
    result = mix(colors, 5)
    with np.errstate(over="ignore"):
        for index, table in enumerate(tables):
            salts = [8 + 64 * index + column for column in range(table.shape[1])]
            marks = np.zeros(table.shape[0], dtype=np.uint64)
            for column, salt in zip(table.T, salts, strict=True):
                marks = marks + mix(_label_colors(colors, column), salt)
            for column, salt in zip(table.T, salts, strict=True):
                free = column >= 0
                np.add.at(result, column[free], mix(marks[free], salt + 31))
        for index, edge in enumerate(edges):
            np.add.at(result, edge.children, mix(colors[edge.parents], -1 - 2 * index))
            np.add.at(result, edge.parents, mix(colors[edge.children], -2 - 2 * index))
    return result


def _label_colors(colors: Hashes, labels: Ints) -> Hashes:
    """Colours of units; rigid labels are colours of their own."""
    if labels.size and labels.min() >= 0:
        return colors[labels]
    return np.where(labels >= 0, colors[np.maximum(labels, 0)], mix(labels, 6))
