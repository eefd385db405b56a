"""Derive from tuples of labels that occur together which units move together or inside others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fxrebasin.passes.fields.constraints import Edge
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints, Table, distinct_rows, row_codes


@dataclass(frozen=True)
class Blocks:
    """Units that were made for the connected parts of a relation.

    Attributes:
        units: the first of them, and one past the last.
        inside: a unit of the relation.
        turn: how often everything had been derived before.
        table: the number of the table that the relation is from.
    """

    units: tuple[int, int]
    inside: int
    turn: int
    table: int


@dataclass(frozen=True, eq=False)
class Structure:
    """What follows from the relations.

    Attributes:
        known: how many units there were before; those added since stand for others.
        raw: the relations as recorded, before any tie, and pairs of units that were tied.
        tables: the relations in terms of representatives.
        edges: from units to the units that they move inside of.
        blocks: the units that were made, in order.
    """

    known: int
    raw: list[Table]
    tables: list[Table]
    edges: list[Edge]
    blocks: tuple[Blocks, ...] = ()


def derive(ledger: Ledger, relations: Iterable[Sequence[Ints]]) -> Structure:
    """Tie, nest and block units until nothing new follows.

    Two units that only ever occur with each other are tied. A unit that only occurs with one unit
    of another field moves inside that unit. Where neither holds but the pairs fall into several
    connected parts, each part becomes a unit that both sides move inside of.
    """
    known = ledger.size
    tables = [distinct_rows(columns) for columns in relations]
    tables += [distinct_rows([e.children, e.parents]) for e in ledger.edges if e.children.size]
    pairs = _Pairs(ledger)
    for number, table in enumerate(tables):
        pairs.add_table(table, number)
    while True:
        pairs.tie()
        edges = pairs.edges()
        if pairs.dirty():
            continue
        added = [pairs.add(*columns, len(tables)) for columns in _shared_parents(edges)]
        if not any(added):
            raw = [*tables, *(np.stack(pair).T for pair in ledger.ties)]
            canonical = _canonical(ledger, tables)
            return Structure(known, raw, canonical, edges, tuple(pairs.blocks))


def _canonical(ledger: Ledger, tables: Iterable[Table]) -> list[Table]:
    found: dict[tuple[bytes, int], Table] = {}
    for table in tables:
        labels = ledger.find(table)
        rows = labels if np.array_equal(labels, table) else distinct_rows(list(labels.T))
        found.setdefault((rows.tobytes(), rows.shape[1]), rows)
    return list(found.values())


class _Pairs:
    """Pairs of units that occur together, kept canonical and distinct while units get tied."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.tables: list[Table] = []
        self.numbers: list[int] = []
        self.blocks: list[Blocks] = []
        self.turns = 0
        self.seen: set[bytes] = set()
        self.edges_of: dict[bytes, list[Edge]] = {}
        self.untied: set[bytes] = set()

    def add_table(self, table: Table, number: int) -> None:
        for i in range(table.shape[1]):
            for j in range(i + 1, table.shape[1]):
                self.add(table[:, i], table[:, j], number)

    def add(self, one: Ints, two: Ints, number: int) -> bool:
        """True when these pairs, of a table of some number, are new."""
        both = (one >= 0) & (two >= 0)
        pairs = self._distinct(one[both], two[both])
        key = pairs.tobytes()
        if not pairs.size or key in self.seen:
            return False
        self.seen.add(key)
        self.tables.append(pairs)
        self.numbers.append(number)
        return True

    def _distinct(self, one: Ints, two: Ints) -> Table:
        one, two = self.ledger.find(one), self.ledger.find(two)
        different = one != two
        if not different.any():
            return np.zeros((0, 2), dtype=np.int64)
        return distinct_rows([one[different], two[different]])

    def dirty(self) -> bool:
        """Whether some pairs are no longer in terms of representatives."""
        if self.ledger.flat:
            return False
        return any(not np.array_equal(self.ledger.find(t), t) for t in self.tables)

    def _refresh(self) -> None:
        if self.ledger.flat:
            return
        self.ledger.compress()
        found: dict[bytes, tuple[Table, int]] = {}
        for table, number in zip(self.tables, self.numbers, strict=True):
            current = self._current(table)
            if current.size:
                found.setdefault(current.tobytes(), (current, number))
        self.tables = [table for table, _ in found.values()]
        self.numbers = [number for _, number in found.values()]
        self.seen |= found.keys()

    def _current(self, table: Table) -> Table:
        labels = self.ledger.find(table)
        if np.array_equal(labels, table):
            return table
        return self._distinct(labels[:, 0], labels[:, 1])

    def tie(self) -> None:
        """Tie all units that only occur with each other."""
        while True:
            self._refresh()
            for table in self.tables:
                self._tie_in(self._current(table))
            if not self.dirty():
                return

    def _tie_in(self, pairs: Table) -> None:
        key = pairs.tobytes()
        if key in self.untied:
            return
        left, right = pairs[:, 0], pairs[:, 1]
        matched = (_partners(left) == 1) & (_partners(right) == 1)
        if matched.any():
            self.ledger.tie(left[matched], right[matched])
        self.untied.add(key)

    def edges(self) -> list[Edge]:
        """Edges from units to the units that they move inside of."""
        found: dict[tuple[bytes, bytes], Edge] = {}
        for table, number in zip(self.tables, self.numbers, strict=True):
            key = table.tobytes()
            if key not in self.edges_of:
                before = len(self.ledger.births)
                self.edges_of[key] = _nested(self.ledger, table)
                for units in self.ledger.births[before:]:
                    self.blocks.append(Blocks(units, int(table[0, 0]), self.turns, number))
            for edge in self.edges_of[key]:
                above = self.ledger.find(edge.parents)
                apart = edge.children != above  # a block of one unit was tied to it
                if apart.any():
                    children, parents = edge.children[apart], above[apart]
                    found.setdefault(
                        (children.tobytes(), parents.tobytes()), Edge(children, parents)
                    )
        self.turns += 1
        return list(found.values())


def _nested(ledger: Ledger, pairs: Table) -> list[Edge]:
    left, right = pairs[:, 0], pairs[:, 1]
    only_left, only_right = _partners(left) == 1, _partners(right) == 1
    found = []
    for children, parents, one, other in (
        (left, right, only_left, only_right),
        (right, left, only_right, only_left),
    ):
        inside = one & ~other
        if inside.any():
            found.append(Edge(children[inside], parents[inside]))
    mixed = ~only_left & ~only_right
    if mixed.any():
        found += _block(ledger, left[mixed], right[mixed])
    return found


def _partners(column: Ints) -> Ints:
    """For each row, in how many rows its label occurs."""
    code = row_codes([column])
    return np.asarray(np.bincount(code)[code], dtype=np.int64)


def _block(ledger: Ledger, left: Ints, right: Ints) -> list[Edge]:
    """Units for the connected parts of a many-to-many relation."""
    lefts, row = np.unique(left, return_inverse=True)
    rights, column = np.unique(right, return_inverse=True)
    shape = (lefts.size + rights.size,) * 2
    graph = coo_matrix((np.ones(row.size, np.int8), (row, column + lefts.size)), shape=shape)
    count, part = connected_components(graph, directed=False)
    if count == 1:
        return []
    unit = ledger.fresh(count).numpy()
    return [Edge(lefts, unit[part[: lefts.size]]), Edge(rights, unit[part[lefts.size :]])]


def _shared_parents(edges: Sequence[Edge]) -> list[tuple[Ints, Ints]]:
    """Pairs of parents that the same children have by different edges."""
    by_child: dict[int, list[int]] = {}
    for index, edge in enumerate(edges):
        for child in {int(edge.children[0]), int(edge.children[-1])}:
            by_child.setdefault(child, []).append(index)
    pairs = sorted({(a, b) for group in by_child.values() for a in group for b in group if a < b})
    found = []
    for a, b in pairs:
        first, second = edges[a], edges[b]
        if np.array_equal(first.children, second.children):
            found.append((first.parents, second.parents))
            continue
        _, one, two = np.intersect1d(first.children, second.children, return_indices=True)
        if one.size:
            found.append((first.parents[one], second.parents[two]))
    return found
