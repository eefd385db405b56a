"""Which outer units to pair, where matching inside a pair tells what it is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import ROUNDING, assign_batch
from fxrebasin.solvers.blocks import Block, paired
from fxrebasin.solvers.inner_problems import InnerProblems, Values
from fxrebasin.solvers.scaling import Gains

# Elements of one side of a batch of pairs.
_MOST_ELEMENTS = 2**22
# Up to this many outer units, all pairs are looked at; beyond, only those that seem good.
_ALL_PAIRS_UP_TO = 16
_MOST_LOOKS = 8


@dataclass(frozen=True)
class Pairing:
    """Permutations of a class and of what is within it, for a batch of problems.

    Args:
        chosen: int64 of shape (count, n).
        inner: int64 of shape (count, n, *other copies, size), by class name.
    """

    chosen: IntArray
    inner: dict[str, IntArray]


class PairTable:
    """What pairs of outer units are worth; each is solved inside when it is first looked at.

    Args:
        base: what pairs are worth without their inside, float64 of shape (count, n, n).
        linear: gains that one inner class decides, (count, n, n, size, size) by name.
        blocks: with the outer class in front.
        solve: solves what is inside pairs, from permutations that are known or afresh.
    """

    def __init__(
        self,
        base: Values,
        linear: Mapping[str, Gains],
        blocks: Sequence[Block],
        solve: Callable[[InnerProblems, Arrays | None], dict[str, IntArray]],
    ) -> None:
        self._base = base
        self._linear = linear
        self._blocks = blocks
        self._solve = solve
        inside = (slot.class_name for block in blocks for slot in block.slots[1:])
        self._names = tuple(dict.fromkeys([*linear, *(n for n in inside if n is not None)]))
        # No more than the best of each row, and of each column, can be collected.
        self._bound = base.copy()
        for gains in linear.values():
            rows, columns = (gains.max(axis=k).sum(axis=-1, dtype=np.float64) for k in (-1, -2))
            self._bound += np.minimum(rows, columns)
        self.values = self._bound.copy()
        # Where the inside of a pair is found in `_arrays`; -1 until it is looked at.
        self._row = np.full(base.shape, -1)
        self._arrays: dict[str, IntArray] = {}
        if not self._names:
            self._row[:] = 0
        elif base.shape[-1] <= _ALL_PAIRS_UP_TO:
            self._look(np.nonzero(self._row < 0))

    def search(self, prefer: IntArray | None = None) -> IntArray:
        """The best pairing of outer units, int64 of shape (count, n).

        Pairs that were not looked at count as much as their bound, less the amount by which bounds
        were too high elsewhere. Those that are chosen are looked at, until all chosen ones have
        been.

        Args:
            prefer: int64 of shape (count, n), the pairing to stay with where others are no better.
        """
        for _ in range(_MOST_LOOKS):
            chosen = assign_batch(self._expected(), prefer)
            here = self._at(chosen)
            fresh = self._row[here] < 0
            if not fresh.any():
                return chosen
            self._look(tuple(np.broadcast_to(index, fresh.shape)[fresh] for index in here))
        never = self.values.min() - np.ptp(self.values) * self.values.shape[-1] - 1
        return assign_batch(np.where(self._row < 0, never, self.values), prefer)

    def look_from(self, current: Pairing) -> None:
        """Look at the current pairs from their present inside, which is kept if nothing is better.

        Args:
            current: the present pairing.
        """
        count, n = current.chosen.shape
        here = tuple(np.broadcast_to(x, (count, n)).ravel() for x in self._at(current.chosen))
        start = {
            name: current.inner[name].reshape(count * n, *current.inner[name].shape[2:])
            for name in self._names
        }
        problems = self._problems(here)
        warm = self._solve(problems, start)
        kept = self._base[here] + problems.values(warm)
        # Where classes inside work together, a fresh start can lead further than the present state.
        if self._blocks:
            missing = self._row[here] < 0
            self._look(tuple(index[missing] for index in here))
            found = self.values[here]
            better = found > kept + ROUNDING * (np.abs(found) + np.abs(kept))
        else:
            better = np.zeros(count * n, dtype=bool)
        row = self._stored(warm, count * n)
        self._row[here] = np.where(better, self._row[here], row)
        self.values[here] = np.where(better, self.values[here], kept)

    def pairing(self, chosen: IntArray) -> Pairing:
        """Chosen pairs with what was found inside.

        Args:
            chosen: int64 of shape (count, n), of pairs that were looked at.
        """
        row = self._row[self._at(chosen)]
        return Pairing(chosen, {name: array[row] for name, array in self._arrays.items()})

    def _at(self, chosen: IntArray) -> tuple[IntArray, ...]:
        count, n = chosen.shape
        return np.arange(count)[:, None], np.arange(n), chosen

    def _expected(self) -> Values:
        """What pairs are worth, as far as it is known."""
        seen = self._row >= 0
        gaps = np.where(seen, self.values - self._bound, 0.0).sum(axis=(1, 2))
        gap = gaps / np.maximum(seen.sum(axis=(1, 2)), 1)
        return np.where(seen, self.values, self._bound + gap[:, None, None])

    def _look(self, pairs: tuple[IntArray, ...]) -> None:
        """Solve inside pairs: indices of the problem, of the unit of a, and of that of b."""
        elements = max(
            (block.per_problem // block.slots[0].size for block in self._blocks), default=1
        )
        step = max(1, _MOST_ELEMENTS // max(1, elements))
        for first in range(0, len(pairs[0]), step):
            part = tuple(index[first : first + step] for index in pairs)
            problems = self._problems(part)
            arrays = self._solve(problems, None)
            self.values[part] = self._base[part] + problems.values(arrays)
            self._row[part] = self._stored(arrays, problems.count)

    def _problems(self, pairs: tuple[IntArray, ...]) -> InnerProblems:
        return InnerProblems(
            len(pairs[0]),
            self._names,
            {name: gains[pairs] for name, gains in self._linear.items()},
            [paired(block, *pairs) for block in self._blocks],
        )

    def _stored(self, arrays: Arrays, count: int) -> IntArray:
        """Keep arrays; returns where."""
        first = 0
        for name in self._names:
            parts = [self._arrays[name], arrays[name]] if name in self._arrays else [arrays[name]]
            self._arrays[name] = np.concatenate(parts)
            first = len(self._arrays[name]) - count
        return np.arange(first, first + count)
