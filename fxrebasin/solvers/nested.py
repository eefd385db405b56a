"""Matching within matching: classes whose permutation depends on how other classes are paired.

To pair heads, each head of the reference is tried beside each head of the model; what that pair is
worth is found by matching the units inside. The same holds for groups of a convolution and for
key/value heads with query heads inside, at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import (
    ROUNDING,
    assign_batch,
    collected,
    improves,
)
from fxrebasin.solvers.auction import Gains
from fxrebasin.solvers.blocks import (
    Block,
    agreement,
    focus,
    open_beside,
    paired,
    products,
)

Values: TypeAlias = npt.NDArray[np.float64]

# Inner coordinate descent is repeated at most so often; it nearly always stops after two.
_MOST_ROUNDS = 10
# Elements of one side of a batch of pairs.
_MOST_ELEMENTS = 2**22
# Up to so many outer units all pairs are looked at; beyond, those that seem good.
_ALL_PAIRS_UP_TO = 16
_MOST_LOOKS = 8


@dataclass(frozen=True)
class Problem:
    """A batch of matching problems of one shape.

    Args:
        count: number of problems.
        names: classes to solve for.
        linear: gains that no other class changes, of shape `(count, *copies, n, n)` by class name.
        blocks: weights that hold several classes.
    """

    count: int
    names: tuple[str, ...]
    linear: Mapping[str, Gains] = field(default_factory=dict)
    blocks: Sequence[Block] = ()

    def roots(self) -> list[str]:
        """Classes that are within no class that is solved for as well."""
        inner = {
            slot.class_name
            for block in self.blocks
            for slot in block.slots
            if any(block.slots[w].class_name in self.names for w in slot.within)
        }
        return [name for name in self.names if name not in inner]

    def values(self, arrays: Arrays) -> Values:
        """What permutations collect, float64 of shape (count,).

        Args:
            arrays: of all classes, `(count, *copies, n)`.
        """
        total = np.zeros(self.count)
        for name, gains in self.linear.items():
            total += collected(gains, arrays[name]).reshape(self.count, -1).sum(axis=1)
        for block in self.blocks:
            total += agreement(block, arrays).cpu().numpy()
        return total


@dataclass(frozen=True)
class Pairing:
    """Permutations of a class and of what is within it, for a batch of problems.

    Args:
        chosen: int64 of shape (count, n).
        inner: int64 of shape (count, n, *other copies, size), by class name.
    """

    chosen: IntArray
    inner: dict[str, IntArray]


def solve(problem: Problem, known: Arrays | None = None) -> dict[str, IntArray]:
    """Coordinate descent over the classes of a problem, for the whole batch at once.

    Args:
        problem: what to maximise.
        known: permutations to start from, `(count, *copies, n)`; classes that are missing are
            matched first by what is decided without them.

    Returns:
        By class name, `(count, *copies, n)`, all that `known` holds and all that were solved for.
    """
    arrays = dict(known or {})
    roots = problem.roots()
    missing = [name for name in roots if name not in arrays]
    stale = {name for name in roots if name in arrays}
    while missing:
        name = max(missing, key=lambda n: _evidence(problem, n, arrays))
        missing.remove(name)
        stale |= _update(problem, name, arrays)
        stale.discard(name)
    for _ in range(_MOST_ROUNDS):
        for name in roots:
            if name in stale:
                stale.discard(name)
                stale |= _update(problem, name, arrays)
        if not stale:
            break
    return arrays


def _update(problem: Problem, name: str, arrays: dict[str, IntArray]) -> set[str]:
    """Solve for one class in place; returns the roots whose gains this changed."""
    news = _step(problem, name, arrays)
    changed = {n for n, a in news.items() if n not in arrays or not np.array_equal(a, arrays[n])}
    arrays.update(news)
    touched = [block for block in problem.blocks if not changed.isdisjoint(block.names())]
    met = {n for block in touched for n in block.names()} - {name}
    return {root for root in problem.roots() if root in met}


def match_pairs(
    shape: tuple[int, int],
    blocks: Sequence[Block],
    constant: Gains | None = None,
    linear: Mapping[str, Gains] | None = None,
    current: Pairing | None = None,
) -> Pairing:
    """Pair the units of a class that others are within, each pair at its best inside.

    Args:
        shape: number of problems and size of the class.
        blocks: with the class in front, within nothing.
        constant: gains of pairs that nothing inside changes, (count, n, n).
        linear: gains that one inner class alone decides, (count, n, n, size, size) by name.
        current: where to start from; it is kept where nothing better is found.

    Returns:
        The new pairing, which collects no less than `current` does.
    """
    count, n = shape
    base = np.zeros((count, n, n)) if constant is None else constant.astype(np.float64)
    gains = dict(linear or {})
    open_blocks = []
    for block in blocks:
        if len(block.slots) == 1:
            base += products(block.a, block.b).cpu().numpy()
        elif len(block.slots) == 2 and block.slots[1].class_name is not None:
            _add_linear(gains, block)
        else:
            open_blocks.append(block)
    table = _PairTable(base, gains, open_blocks)
    if current is None:
        return table.pairing(table.search())
    table.look_from(current)
    chosen = table.search(current.chosen)
    better = improves(table.values, chosen, current.chosen)
    return table.pairing(np.where(better[:, None], chosen, current.chosen))


def _add_linear(gains: dict[str, Gains], block: Block) -> None:
    """Add products of all units of all pairs; one matrix product does it."""
    count, n, size = block.a.shape[:3]
    name = block.slots[1].class_name or ""
    gram = products(block.a.flatten(1, 2), block.b.flatten(1, 2)).cpu().numpy()
    gram = gram.reshape(count, n, size, n, size).swapaxes(2, 3)
    gains[name] = gains[name] + gram if name in gains else gram


class _PairTable:
    """What pairs of outer units are worth; each is solved inside when it is first looked at.

    Args:
        base: what pairs are worth without their inside, float64 of shape (count, n, n).
        linear: gains that one inner class decides, (count, n, n, size, size) by name.
        blocks: with the outer class in front.
    """

    def __init__(self, base: Values, linear: Mapping[str, Gains], blocks: Sequence[Block]) -> None:
        self._base = base
        self._linear = linear
        self._blocks = blocks
        inside = (slot.class_name for block in blocks for slot in block.slots[1:])
        self._names = tuple(dict.fromkeys([*linear, *(n for n in inside if n is not None)]))
        # No more than the best of each row, and of each column, can be collected.
        self._bound = base.copy()
        for gains in linear.values():
            rows, columns = (gains.max(axis=k).sum(axis=-1, dtype=np.float64) for k in (-1, -2))
            self._bound += np.minimum(rows, columns)
        self.values = self._bound.copy()
        # Where the inside of a pair is found in `_arrays`; -1 as long as it was not looked at.
        self._place = np.full(base.shape, -1)
        self._arrays: dict[str, IntArray] = {}
        if not self._names:
            self._place[:] = 0
        elif base.shape[-1] <= _ALL_PAIRS_UP_TO:
            self._look(np.nonzero(self._place < 0))

    def search(self, prefer: IntArray | None = None) -> IntArray:
        """The best pairing of outer units, int64 of shape (count, n).

        Pairs that were not looked at are taken for as good as their bound, less what the bound was
        too high elsewhere; those that are chosen are looked at, until there are no more such.

        Args:
            prefer: int64 of shape (count, n), what to keep to where others are as good.
        """
        for _ in range(_MOST_LOOKS):
            chosen = assign_batch(self._expected(), prefer)
            here = self._at(chosen)
            fresh = self._place[here] < 0
            if not fresh.any():
                return chosen
            self._look(tuple(np.broadcast_to(index, fresh.shape)[fresh] for index in here))
        never = self.values.min() - np.ptp(self.values) * self.values.shape[-1] - 1
        return assign_batch(np.where(self._place < 0, never, self.values), prefer)

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
        problem = self._problem(here)
        warm = solve(problem, start)
        kept = self._base[here] + problem.values(warm)
        # Where classes inside work together, a fresh start can lead further than the present state.
        if self._blocks:
            missing = self._place[here] < 0
            self._look(tuple(index[missing] for index in here))
            found = self.values[here]
            better = found > kept + ROUNDING * (np.abs(found) + np.abs(kept))
        else:
            better = np.zeros(count * n, dtype=bool)
        place = self._stored(warm, count * n)
        self._place[here] = np.where(better, self._place[here], place)
        self.values[here] = np.where(better, self.values[here], kept)

    def pairing(self, chosen: IntArray) -> Pairing:
        """Chosen pairs with what was found inside.

        Args:
            chosen: int64 of shape (count, n), of pairs that were looked at.
        """
        place = self._place[self._at(chosen)]
        return Pairing(chosen, {name: array[place] for name, array in self._arrays.items()})

    def _at(self, chosen: IntArray) -> tuple[IntArray, ...]:
        count, n = chosen.shape
        return np.arange(count)[:, None], np.arange(n), chosen

    def _expected(self) -> Values:
        """What pairs are worth, as far as is known."""
        seen = self._place >= 0
        gaps = np.where(seen, self.values - self._bound, 0.0).sum(axis=(1, 2))
        gap = gaps / np.maximum(seen.sum(axis=(1, 2)), 1)
        return np.where(seen, self.values, self._bound + gap[:, None, None])

    def _look(self, pairs: tuple[IntArray, ...]) -> None:
        """Solve inside pairs: indices of the problem, of the unit of a, and of that of b."""
        elements = max(
            (block.per_problem // block.slots[0].size for block in self._blocks), default=1
        )
        step = max(1, _MOST_ELEMENTS // elements)
        for first in range(0, len(pairs[0]), step):
            part = tuple(index[first : first + step] for index in pairs)
            problem = self._problem(part)
            arrays = solve(problem)
            self.values[part] = self._base[part] + problem.values(arrays)
            self._place[part] = self._stored(arrays, problem.count)

    def _problem(self, pairs: tuple[IntArray, ...]) -> Problem:
        return Problem(
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


def _step(problem: Problem, name: str, arrays: Arrays) -> dict[str, IntArray]:
    """Solve for one class, and for what is within it, with all others as they are."""
    found = _focused(problem, name, arrays)
    if not found and name not in problem.linear:
        # Nothing is decided that would tell units apart: take everything else as it stands.
        arrays = {**_identities(problem), **arrays}
        arrays.pop(name, None)
        found = _focused(problem, name, arrays)
    news = _solved(problem, name, arrays, found)
    if _is_coupled(problem, [*news]) and all(n in arrays for n in problem.names):
        before, after = problem.values(arrays), problem.values({**arrays, **news})
        better = after > before + ROUNDING * (np.abs(after) + np.abs(before))
        news = {n: np.where(_wide(better, a.ndim), a, arrays[n]) for n, a in news.items()}
    return news


def _focused(problem: Problem, name: str, arrays: Arrays) -> list[tuple[Block, int, Block]]:
    """Each occurrence of a class: the block, the slot, and the block with that slot in front."""
    occurrences = [(block, at) for block in problem.blocks for at in block.slots_of(name)]
    found = [(block, at, focus(block, at, arrays, problem.names)) for block, at in occurrences]
    return [(block, at, part) for block, at, part in found if part is not None]


def _solved(
    problem: Problem, name: str, arrays: Arrays, found: Sequence[tuple[Block, int, Block]]
) -> dict[str, IntArray]:
    """New permutations of a class and of what is within it."""
    parts = [part for _, _, part in found]
    copies = _copies(problem, name)
    n = parts[0].slots[0].size if parts else problem.linear[name].shape[-1]
    count = problem.count * int(np.prod(copies, dtype=np.int64))
    alone = problem.linear[name].reshape(count, n, n) if name in problem.linear else None
    now = arrays[name].reshape(count, n) if name in arrays else None
    # The classes of a block behind its first slot that keep their own copies inside each unit.
    orders = {
        slot.class_name: _order_of_copies(block, at, slot.within)
        for block, at, _ in found
        for slot in block.slots
        if at in slot.within and slot.class_name is not None
    }
    if not any(len(part.slots) > 1 for part in parts):
        gains = np.zeros((count, n, n), np.float32) if alone is None else alone
        for part in parts:
            gains = gains + products(part.a, part.b).cpu().numpy()
        chosen = assign_batch(gains, now)
        if now is not None:
            chosen = np.where(improves(gains, chosen, now)[:, None], chosen, now)
        return {name: chosen.reshape(problem.count, *copies, n)}
    current = None
    inner_names = {n for part in parts for n in part.names()} - {name}
    if now is not None and all(n in orders and n in arrays for n in inner_names):
        inside = {k: arrays[k].transpose(order) for k, order in orders.items()}
        shaped = {k: a.reshape(count, n, *a.shape[len(copies) + 2 :]) for k, a in inside.items()}
        current = Pairing(now, shaped)
    pairing = match_pairs((count, n), parts, alone, None, current)
    news = {name: pairing.chosen.reshape(problem.count, *copies, n)}
    for inner, order in orders.items():
        array = pairing.inner[inner]
        array = array.reshape(problem.count, *copies, n, *array.shape[2:])
        news[inner] = array.transpose(np.argsort(order))
    return news


def _copies(problem: Problem, name: str) -> tuple[int, ...]:
    """Sizes of what a class is within, none of which is solved for."""
    for block in problem.blocks:
        for at in block.slots_of(name):
            return tuple(block.slots[w].size for w in block.slots[at].within)
    return problem.linear[name].shape[1:-2]


def _order_of_copies(block: Block, at: int, within: tuple[int, ...]) -> list[int]:
    """Axes of an inner class's array with those that select the outer unit in front."""
    outer = [within.index(w) for w in (*block.slots[at].within, at)]
    others = [k for k in range(len(within)) if k not in outer]
    return [0, *(k + 1 for k in [*outer, *others]), len(within) + 1]


def _evidence(problem: Problem, name: str, arrays: Arrays) -> float:
    """How much is decided about a class already: elements that its gains would be made of."""
    total = float("inf") if name in problem.linear else 0.0
    for block in problem.blocks:
        for at in block.slots_of(name):
            if open_beside(block, at, arrays, problem.names) is not None:
                total += block.per_problem
    return total


def _identities(problem: Problem) -> dict[str, IntArray]:
    """Arrays that move nothing, for all classes in blocks."""
    return {
        slot.class_name: np.broadcast_to(
            np.arange(slot.size),
            (problem.count, *(block.slots[w].size for w in slot.within), slot.size),
        )
        for block in problem.blocks
        for slot in block.slots
        if slot.class_name is not None
    }


def _is_coupled(problem: Problem, names: Sequence[str]) -> bool:
    """Whether one of the classes meets itself in a block, so that gains depend on it."""
    return any(len(block.slots_of(name)) > 1 for block in problem.blocks for name in names)


def _wide(mask: npt.NDArray[np.bool_], ndim: int) -> npt.NDArray[np.bool_]:
    """A mask with axes of size 1 behind, to select whole entries of an array."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))
