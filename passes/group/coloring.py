"""Colour refinement: units of one colour have the same role in everything that was recorded.

The one-dimensional Weisfeiler-Leman algorithm, with 64-bit hashes as colours. Tables are stacked,
so that a round takes a few operations on long arrays instead of hundreds on short ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fxrebasin.passes.fields.constraints import Edge
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Hashes, Ints, Table, distinct, mix
from fxrebasin.passes.group.structure import Structure

_ROUNDS = 64


@dataclass(frozen=True, eq=False)
class _Stack:
    """The rows of all tables that have as many columns, and a salt for each row: its table's."""

    rows: Table
    salts: Ints


def color(ledger: Ledger, structure: Structure, tags: Hashes, pinned: Ints) -> Hashes:
    """The colour of every unit (of a tie, that of its representative).

    Args:
        ledger: for representatives.
        structure: what units occur with.
        tags: the roles of units before any tie.
        pinned: units that do not move.
    """
    roots = ledger.compress()
    colors = _initial(tags, roots, pinned)
    # Most units are tied to others, or occur with none; the rest get short arrays of their own.
    beside = _that_occur(structure, roots.size)
    number = np.empty(roots.size, dtype=np.int64)
    number[beside] = np.arange(beside.size)
    tables = [_numbered(table, number) for table in structure.tables if (table >= 0).any()]
    edges = [Edge(number[edge.children], number[edge.parents]) for edge in structure.edges]
    units = np.arange(beside.size)
    own = _refined(colors[beside], units, _stacked(tables), _stacked_edges(edges))
    colors[beside] = own
    return colors[roots]


def _that_occur(structure: Structure, count: int) -> Ints:
    """The representatives that are in a relation, or inside of another."""
    found = np.zeros(count, dtype=np.bool_)
    for table in structure.tables:
        found[table[table >= 0]] = True
    for edge in structure.edges:
        found[edge.children] = True
        found[edge.parents] = True
    return np.flatnonzero(found)


def _numbered(table: Table, number: Ints) -> Table:
    """A table of other numbers of units, and the same rigid labels."""
    free = table >= 0
    if free.all():
        return np.asarray(number[table])
    return np.where(free, number[np.maximum(table, 0)], table)


def roles(ledger: Ledger, structure: Structure) -> Hashes:
    """What sets units apart that may have been tied: the colours of units before any tie."""
    own = marks(ledger)
    known = np.arange(structure.known)
    return _refined(own, known, _stacked(structure.raw), _stacked_edges([]))


def _refined(
    colors: Hashes, units: Ints, stacks: Sequence[_Stack], edges: tuple[Ints, Ints, Ints]
) -> Hashes:
    """Colours that also tell what units occur with, until no more of some units are told apart."""
    before = distinct(colors[units]).size
    for _ in range(_ROUNDS):
        colors = _with_occurrences(colors, mix(colors, 5), stacks) + _beside(colors, edges)
        now = distinct(colors[units]).size
        if now == before:
            break
        before = now
    return colors


def marks(ledger: Ledger) -> Hashes:
    """What a unit has by itself: how it was made, and the selections that it fell into."""
    births = np.array([end - start for start, end in ledger.births], np.int64)
    result = mix(np.repeat(np.arange(births.size), births), 1)
    for index, values in enumerate(ledger.members):
        labels = values.reshape(-1).numpy()
        first, last = int(labels.min()), int(labels.max())
        salt = mix(np.array([index]), 2)
        if first >= 0 and last - first < 2 * labels.size:
            result[first : last + 1] += np.bincount(labels - first).astype(np.uint64) * salt
        else:
            np.add.at(result, labels[labels >= 0], salt)
    return result


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


def _initial(tags: Hashes, roots: Ints, pinned: Ints) -> Hashes:
    """The roles of all units tied to one; pinned units are all different.

    Looked at before ties: units inside two parents that got tied must not be exchanged across
    the tie.
    """
    colors = np.zeros(tags.size, dtype=np.uint64)
    np.add.at(colors, roots, mix(tags, 3))
    rigid = distinct(roots[pinned])
    np.add.at(colors, rigid, mix(rigid, 4))
    return colors


def _label_colors(colors: Hashes, labels: Ints) -> Hashes:
    """Colours of units; rigid labels are colours of their own."""
    if labels.size and labels.min() >= 0:
        return colors[labels]
    return np.where(labels >= 0, colors[np.maximum(labels, 0)], mix(labels, 6))
