"""Whole numbers that solve linear equations, and sets that do so modulo two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import TypeAlias

from fxrebasin.kinds import Place

Powers: TypeAlias = Mapping[Place, Fraction]
"""Exponents by place: a sum of unknowns, where they are those of an equation."""


class Span:
    """What vectors reach together."""

    def __init__(self) -> None:
        self._rows: dict[Place, Powers] = {}

    def add(self, item: Mapping[Place, int]) -> bool:
        """Take one more vector in, and say whether it was out of reach.

        Args:
            item: its coefficients.
        """
        row = _reduced({place: Fraction(power) for place, power in item.items()}, self._rows)
        if not row:
            return False
        pivot = min(row)
        row = {place: power / row[pivot] for place, power in row.items()}
        for other, old in list(self._rows.items()):
            if pivot in old:
                self._rows[other] = _scaled_minus(old, row, old[pivot])
        self._rows[pivot] = row
        return True


def solutions(equations: Sequence[Powers], places: Sequence[Place]) -> list[dict[Place, int]]:
    """A basis of the whole numbers that solve homogeneous linear equations.

    Args:
        equations: sums that are zero.
        places: the unknowns; earlier ones are rather left free.
    """
    order = list(dict.fromkeys(places))
    rows: dict[Place, Powers] = {}  # by the unknown that each solves for: the last of it
    rank = {place: number for number, place in enumerate(order)}
    for equation in equations:
        row = _reduced(equation, rows)
        if row:
            pivot = max(row, key=lambda place: rank[place])
            row = {place: power / row[pivot] for place, power in row.items()}
            for other, old in list(rows.items()):
                if pivot in old:
                    rows[other] = _scaled_minus(old, row, old[pivot])
            rows[pivot] = row
    found = []
    for free in (place for place in order if place not in rows):
        powers = {free: Fraction(1)}
        powers |= {pivot: -row[free] for pivot, row in rows.items() if free in row}
        common = lcm(*(power.denominator for power in powers.values()))
        found.append({place: int(power * common) for place, power in powers.items() if power})
    return found


def _reduced(equation: Powers, rows: Mapping[Place, Powers]) -> Powers:
    row = equation
    for pivot, other in rows.items():
        if pivot in row:
            row = _scaled_minus(row, other, row[pivot])
    return row


def _scaled_minus(row: Powers, other: Powers, factor: Fraction) -> Powers:
    found = dict(row)
    for place, power in other.items():
        found[place] = found.get(place, Fraction(0)) - factor * power
    return {place: power for place, power in found.items() if power}


def sign_solutions(
    parities: Sequence[Collection[Place]], places: Sequence[Place]
) -> list[frozenset[Place]]:
    """A basis of the sets of places whose signs may change together.

    Args:
        parities: sets of places of which an even number changes.
        places: all of them.
    """
    order = list(dict.fromkeys(places))
    rank = {place: number for number, place in enumerate(order)}
    rows: dict[Place, frozenset[Place]] = {}
    for parity in parities:
        row = frozenset(parity)
        for pivot, other in rows.items():
            row = row ^ other if pivot in row else row
        if row:
            pivot = max(row, key=lambda place: rank[place])
            rows = {key: old ^ row if pivot in old else old for key, old in rows.items()}
            rows[pivot] = row
    return [
        frozenset({free, *(pivot for pivot, row in rows.items() if free in row)})
        for free in order
        if free not in rows
    ]
