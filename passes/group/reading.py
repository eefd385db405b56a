"""Which units anything is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Bools, Ints, Table
from fxrebasin.passes.group.state_fields import StateField
from fxrebasin.passes.group.structure import Structure


def reduced_units(
    ledger: Ledger, roots: Ints, fields: Mapping[str, list[StateField]], known: int
) -> Bools:
    """For every unit, whether its values are reduced to something.

    Args:
        ledger: what was recorded.
        roots: by unit, its representative; only representatives are told of.
        fields: the labels on state tensors.
        known: how many units propagation made; those that the derivation adds stand for others.
    """
    read = np.zeros(roots.size, dtype=np.bool_)
    reduced = [values.numpy() for values in ledger.used]
    states = {item.state for item in ledger.used_parts}
    reduced += [item.values for state in sorted(states) for item in fields[state]]
    for values in reduced:
        labels = values.reshape(-1)
        read[labels if labels.size and labels.min() >= 0 else labels[labels >= 0]] = True
    used = np.zeros(roots.size, dtype=np.bool_)
    used[roots[known:]] = True
    used[roots[read]] = True
    return used


def meetings(structure: Structure) -> list[Table]:
    """What units occur with, and what they are inside of, in terms of representatives."""
    tables = [table for table in structure.tables if table.shape[1] > 1]
    return tables + [np.stack([edge.children, edge.parents]).T for edge in structure.edges]


def spread_use(tables: Sequence[Table], used: Bools) -> Bools:
    """The units that are used, and those that occur with one of them, in any number of steps.

    Args:
        tables: of units that occur together.
        used: by unit.
    """
    found, before = used.copy(), -1
    while before != (before := int(found.sum())):
        for table in tables:
            free = table >= 0
            rows = (found[np.maximum(table, 0)] & free).any(axis=1)
            found[table[rows][free[rows]]] = True
    return found
