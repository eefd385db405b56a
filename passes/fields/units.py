"""Units and which of them are tied: a union-find over arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fxrebasin.passes.fields.rows import Ints


@dataclass
class Units:
    """All units made so far. `births` are the ranges that were made together.

    `ties` are all pairs that were tied, as they were then.
    """

    births: list[tuple[int, int]] = field(default_factory=list)
    ties: list[tuple[Ints, Ints]] = field(default_factory=list)
    _parent: Ints = field(default_factory=lambda: np.zeros(1024, np.int64))
    _size: int = 0
    _flat: bool = True  # every parent is a representative

    @property
    def flat(self) -> bool:
        """Whether nothing was tied since representatives were last compressed."""
        return self._flat

    @property
    def size(self) -> int:
        """How many units there are."""
        return self._size

    def fresh(self, count: int) -> Tensor:
        """New units, free until something constrains them; they share one birth."""
        start, end = self._size, self._size + count
        if end > len(self._parent):
            grown = np.zeros(max(end, 2 * len(self._parent)), np.int64)
            grown[:start] = self._parent[:start]
            self._parent = grown
        self._parent[start:end] = np.arange(start, end)
        self._size = end
        self.births.append((start, end))
        return torch.arange(start, end)

    def find(self, labels: Ints) -> Ints:
        """Representatives of units; rigid labels are returned as they are."""
        if not self._size:
            return labels
        rigid = labels < 0
        some_rigid = bool(rigid.any())
        roots = self._parent[np.where(rigid, 0, labels) if some_rigid else labels]
        while not self._flat:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        return np.where(rigid, labels, roots) if some_rigid else roots

    def compress(self) -> Ints:
        """The representative of every unit."""
        roots = self._parent[: self._size].copy()
        while not self._flat:
            above = self._parent[roots]
            self._flat = np.array_equal(above, roots)
            roots = above
        self._parent[: self._size] = roots
        return roots

    def tie(self, first: Ints, second: Ints) -> bool:
        """Make units move alike, pairwise; each side holds distinct, free representatives.

        Nothing is done, and False returned, if a unit is on both sides, as in `x + x.flip(0)`:
        a permutation then has to commute with an exchange, which no tie can express.
        """
        different = first != second
        first, second = first[different], second[different]
        on_one_side = np.zeros(self._size, np.bool_)
        on_one_side[first] = True
        if on_one_side[second].any():
            return False
        self._parent[np.maximum(first, second)] = np.minimum(first, second)
        self._flat = False
        return True

    def represent(self, roots: Ints) -> None:
        """Set the representative of every unit."""
        self._parent[: self._size] = roots
        self._flat = True
