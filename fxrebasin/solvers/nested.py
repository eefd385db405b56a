"""Matching within matching: classes whose permutation depends on how other classes are paired.

To pair heads, each head of the reference is tried beside each head of the model; what that pair is
worth is found by matching the units inside. The same holds for groups of a convolution and for
key/value heads with query heads inside, at any depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import ROUNDING, assign_batch, improves
from fxrebasin.solvers.blocks import Block, focus, open_beside, products
from fxrebasin.solvers.inner_problems import InnerProblems
from fxrebasin.solvers.pair_table import Pairing, PairTable
from fxrebasin.solvers.scaling import Gains

# Inner coordinate descent is repeated at most this often; it nearly always stops after two rounds.
_MOST_ROUNDS = 10


def solve(problems: InnerProblems, known: Arrays | None = None) -> dict[str, IntArray]:
    """Coordinate descent over the classes of a batch of problems.

    Args:
        problems: what to maximise.
        known: permutations to start from, `(count, *copies, n)`; classes that are missing are
            matched first by what is decided without them.

    Returns:
        By class name, `(count, *copies, n)`, all that `known` holds and all that were solved for.
    """
    arrays = dict(known or {})
    roots = problems.roots()
    missing = [name for name in roots if name not in arrays]
    stale = {name for name in roots if name in arrays}
    while missing:
        name = max(missing, key=lambda n: _evidence(problems, n, arrays))
        missing.remove(name)
        stale |= _update(problems, name, arrays)
        stale.discard(name)
    for _ in range(_MOST_ROUNDS):
        for name in roots:
            if name in stale:
                stale.discard(name)
                stale |= _update(problems, name, arrays)
        if not stale:
            break
    return arrays


def _update(problems: InnerProblems, name: str, arrays: dict[str, IntArray]) -> set[str]:
    """Solve for one class in place; returns the roots whose gains this changed."""
    news = _step(problems, name, arrays)
    changed = {n for n, a in news.items() if n not in arrays or not np.array_equal(a, arrays[n])}
    arrays.update(news)
    touched = [block for block in problems.blocks if not changed.isdisjoint(block.names())]
    met = {n for block in touched for n in block.names()}
    if not _is_coupled(problems, [*news]):
        met.discard(name)
    return {root for root in problems.roots() if root in met}


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
    table = PairTable(base, gains, open_blocks, solve)
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


def _step(problems: InnerProblems, name: str, arrays: Arrays) -> dict[str, IntArray]:
    """Solve for one class, and for what is within it, while all others stay as they are."""
    found = _focused(problems, name, arrays)
    if not found and name not in problems.linear:
        # Nothing is decided that would tell units apart: take everything else as it stands.
        still = {n: a for n, a in _identities(problems).items() if n != name}
        arrays = {**still, **arrays}
        found = _focused(problems, name, arrays)
    news = _solved(problems, name, arrays, found)
    if _is_coupled(problems, [*news]) and all(n in arrays for n in problems.names):
        before, after = problems.values(arrays), problems.values({**arrays, **news})
        better = after > before + ROUNDING * (np.abs(after) + np.abs(before))
        news = {n: np.where(_wide(better, a.ndim), a, arrays[n]) for n, a in news.items()}
    return news


def _focused(problems: InnerProblems, name: str, arrays: Arrays) -> list[tuple[Block, int, Block]]:
    """Each occurrence of a class: the block, the slot, and the block with that slot in front."""
    occurrences = [(block, at) for block in problems.blocks for at in block.slots_of(name)]
    found = [(block, at, focus(block, at, arrays, problems.names)) for block, at in occurrences]
    return [(block, at, part) for block, at, part in found if part is not None]


def _solved(
    problems: InnerProblems, name: str, arrays: Arrays, found: Sequence[tuple[Block, int, Block]]
) -> dict[str, IntArray]:
    """New permutations of a class and of what is within it."""
    parts = [part for _, _, part in found]
    copies = _copies(problems, name)
    n = parts[0].slots[0].size if parts else problems.linear[name].shape[-1]
    count = problems.count * math.prod(copies)
    alone = problems.linear[name].reshape(count, n, n) if name in problems.linear else None
    now = arrays[name].reshape(count, n) if name in arrays else None
    if not any(len(part.slots) > 1 for part in parts):
        chosen = _assigned(parts, alone, now, (count, n))
        return {name: chosen.reshape(problems.count, *copies, n)}
    # Arrays of the classes within this one, with what selects its units in front.
    orders = {
        slot.class_name: _order_of_copies(block, at, slot.within)
        for block, at, _ in found
        for slot in block.slots
        if at in slot.within and slot.class_name is not None
    }
    current = None
    inside = {n for part in parts for n in part.names()} - {name}
    if now is not None and all(n in orders and n in arrays for n in inside):
        turned = {k: arrays[k].transpose(order) for k, order in orders.items()}
        shaped = {k: a.reshape(count, n, *a.shape[len(copies) + 2 :]) for k, a in turned.items()}
        current = Pairing(now, shaped)
    pairing = match_pairs((count, n), parts, alone, None, current)
    news = {name: pairing.chosen.reshape(problems.count, *copies, n)}
    for inner, order in orders.items():
        array = pairing.inner[inner]
        array = array.reshape(problems.count, *copies, n, *array.shape[2:])
        news[inner] = array.transpose(np.argsort(order))
    return news


def _assigned(
    parts: Sequence[Block], alone: Gains | None, now: IntArray | None, shape: tuple[int, int]
) -> IntArray:
    """The best permutations of a class that no other is within; the present ones if as good."""
    count, n = shape
    gains = np.zeros((count, n, n), np.float32) if alone is None else alone
    for part in parts:
        gains = gains + products(part.a, part.b).cpu().numpy()
    chosen = assign_batch(gains, now)
    if now is None:
        return chosen
    return np.where(improves(gains, chosen, now)[:, None], chosen, now)


def _copies(problems: InnerProblems, name: str) -> tuple[int, ...]:
    """Sizes of what a class is within, none of which is solved for."""
    for block in problems.blocks:
        for at in block.slots_of(name):
            return tuple(block.slots[w].size for w in block.slots[at].within)
    return problems.linear[name].shape[1:-2]


def _order_of_copies(block: Block, at: int, within: tuple[int, ...]) -> list[int]:
    """Axes of an inner class's array with those that select the outer unit in front."""
    outer = [within.index(w) for w in (*block.slots[at].within, at)]
    others = [k for k in range(len(within)) if k not in outer]
    return [0, *(k + 1 for k in [*outer, *others]), len(within) + 1]


def _evidence(problems: InnerProblems, name: str, arrays: Arrays) -> float:
    """How much is decided about a class already: elements that its gains would be made of."""
    total = float("inf") if name in problems.linear else 0.0
    for block in problems.blocks:
        for at in block.slots_of(name):
            if open_beside(block, at, arrays, problems.names) is not None:
                total += block.per_problem
    return total


def _identities(problems: InnerProblems) -> dict[str, IntArray]:
    """Arrays that move nothing, for all classes in blocks."""
    return {
        slot.class_name: np.broadcast_to(
            np.arange(slot.size),
            (problems.count, *(block.slots[w].size for w in slot.within), slot.size),
        )
        for block in problems.blocks
        for slot in block.slots
        if slot.class_name is not None
    }


def _is_coupled(problems: InnerProblems, names: Sequence[str]) -> bool:
    """Whether one of the classes meets itself in a block, so that gains depend on it."""
    return any(len(block.slots_of(name)) > 1 for block in problems.blocks for name in names)


def _wide(mask: npt.NDArray[np.bool_], ndim: int) -> npt.NDArray[np.bool_]:
    """A mask with axes of size 1 behind, to select whole entries of an array."""
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))
