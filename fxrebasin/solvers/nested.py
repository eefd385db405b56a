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
    Gains,
    assign_batch,
    collected,
    improves,
)
from fxrebasin.solvers.blocks import (
    Block,
    agreement,
    focus,
    matched,
    open_beside,
    paired,
    products,
)

Values: TypeAlias = npt.NDArray[np.float64]

# Inner coordinate descent is repeated at most so often; it nearly always stops after two.
_MOST_ROUNDS = 10
# Elements of one side of a batch of pairs.
_MOST_ELEMENTS = 2**23


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
    values = np.zeros((count, n, n)) if constant is None else constant.astype(np.float64)
    gains = dict(linear or {})
    open_blocks = []
    for block in blocks:
        if len(block.slots) == 1:
            values += products(block.a, block.b).cpu().numpy()
        elif len(block.slots) == 2 and block.slots[1].class_name is not None:
            _add_linear(gains, block)
        else:
            open_blocks.append(block)
    inner, inside = _inner_of_all_pairs(shape, open_blocks, gains)
    if current is None:
        chosen = assign_batch(values + inside)
        return Pairing(chosen, _picked(inner, chosen))
    return _improved(open_blocks, gains, values, values + inside, inner, current)


def _add_linear(gains: dict[str, Gains], block: Block) -> None:
    """Add products of all units of all pairs; one matrix product does it."""
    count, n, size = block.a.shape[:3]
    name = block.slots[1].class_name or ""
    gram = products(block.a.flatten(1, 2), block.b.flatten(1, 2)).cpu().numpy()
    gram = gram.reshape(count, n, size, n, size).swapaxes(2, 3)
    gains[name] = gains[name] + gram if name in gains else gram


def _inner_of_all_pairs(
    shape: tuple[int, int], blocks: Sequence[Block], linear: Mapping[str, Gains]
) -> tuple[dict[str, IntArray], Values]:
    """Solve inside every pair.

    Returns int64 of shape (count, n, n, *copies, size) by class name, and what each pair is worth
    inside, (count, n, n).
    """
    count, n = shape
    values = np.zeros((count, n, n))
    inside = (slot.class_name for block in blocks for slot in block.slots[1:])
    names = tuple(dict.fromkeys([*linear, *(name for name in inside if name is not None)]))
    if not names:
        return {}, values
    elements = max((block.per_problem for block in blocks), default=0)
    step = max(1, min(n, _MOST_ELEMENTS // max(1, elements * count)))
    parts: dict[str, list[IntArray]] = {name: [] for name in names}
    for first in range(0, n, step):
        last = min(n, first + step)
        problem = Problem(
            count * (last - first) * n,
            names,
            {k: g[:, first:last].reshape(-1, *g.shape[3:]) for k, g in linear.items()},
            [paired(block, first, last) for block in blocks],
        )
        arrays = solve(problem)
        values[:, first:last] = problem.values(arrays).reshape(count, -1, n)
        for name in names:
            parts[name].append(arrays[name].reshape(count, -1, n, *arrays[name].shape[1:]))
    return {name: np.concatenate(part, axis=1) for name, part in parts.items()}, values


def _improved(
    blocks: Sequence[Block],
    linear: Mapping[str, Gains],
    base: Values,
    values: Values,
    inner: dict[str, IntArray],
    current: Pairing,
) -> Pairing:
    """The best pairing, which is the current one where no other is better.

    `base` is what pairs are worth without their inside, `values` with it.
    """
    count, n = current.chosen.shape
    here = (np.arange(count)[:, None], np.arange(n), current.chosen)
    problem = Problem(
        count * n,
        tuple(inner),
        {name: g[here].reshape(-1, *g.shape[3:]) for name, g in linear.items()},
        [matched(block, current.chosen) for block in blocks],
    )
    start = {name: current.inner[name].reshape(-1, *a.shape[3:]) for name, a in inner.items()}
    warm = solve(problem, start)
    kept = base[here] + problem.values(warm).reshape(count, n)
    # Where classes inside work together a fresh start can lead further than the present state.
    slack = ROUNDING * (np.abs(values[here]) + np.abs(kept))
    fresh = values[here] > kept + slack if blocks else np.zeros((count, n), dtype=bool)
    values[here] = np.where(fresh, values[here], kept)
    for name, array in inner.items():
        old = warm[name].reshape(count, n, *array.shape[3:])
        array[here] = np.where(_wide(fresh, array.ndim - 1), array[here], old)
    chosen = assign_batch(values, current.chosen)
    better = improves(values, chosen, current.chosen)
    chosen = np.where(better[:, None], chosen, current.chosen)
    return Pairing(chosen, _picked(inner, chosen))


def _picked(inner: Mapping[str, IntArray], chosen: IntArray) -> dict[str, IntArray]:
    """What was solved inside the pairs that were chosen."""
    count, n = chosen.shape
    here = (np.arange(count)[:, None], np.arange(n), chosen)
    return {name: array[here] for name, array in inner.items()}


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
