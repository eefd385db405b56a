"""What a ledger holds: constraints on units, each with the operator that it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxrebasin.passes.fields.rows import Ints


@dataclass(frozen=True, eq=False)
class Edge:
    """Each child unit moves within the parent unit at the same index."""

    children: Ints
    parents: Ints


@dataclass(frozen=True, eq=False)
class Imposition:
    """Labels on elements of a state tensor; `view` addresses them, `values` broadcasts to it."""

    view: Tensor
    values: Tensor
    origin: int
    reason: str


@dataclass(frozen=True, eq=False)
class Pin:
    """Units that do not move, why, and at which operator that was found."""

    units: Ints
    reason: str
    origin: int
