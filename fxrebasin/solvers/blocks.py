"""Small blocks of weights in slot coordinates, many problems of the same shape at a time.

A block holds, for each of a batch of problems, the weights of one piece of the reference beside
those of the model. `focus` brings one class of it to the front: what depends on that class stays
open, everything else is put where it is known to belong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray, Slot


@dataclass(frozen=True)
class Block:
    """Weights of both sides, of shape `(problems, *sizes of slots, columns)`.

    The slots' `within` refers to each other. A slot without class never moves; others may still
    be `within` it, with a permutation of their own for each of its positions.
    """

    a: torch.Tensor
    b: torch.Tensor
    slots: tuple[Slot, ...]

    @property
    def count(self) -> int:
        """Number of problems."""
        return self.a.shape[0]

    @property
    def per_problem(self) -> int:
        """Elements of each side in one problem."""
        return self.a[0].numel()

    def names(self) -> list[str]:
        """Classes that are open here."""
        return list(dict.fromkeys(s.class_name for s in self.slots if s.class_name is not None))

    def with_rigid(self, name: str) -> Block:
        """The block if a class does not move.

        Args:
            name: of the class.
        """
        slots = (replace(s, class_name=None) if s.class_name == name else s for s in self.slots)
        return Block(self.a, self.b, tuple(slots))

    def slots_of(self, name: str) -> list[int]:
        """Slots that hold a class, by number.

        Args:
            name: of the class.
        """
        return [k for k, slot in enumerate(self.slots) if slot.class_name == name]


def open_beside(
    block: Block, at: int, known: Collection[str], owned: Collection[str]
) -> set[int] | None:
    """Slots that stay open when one slot is matched: itself, and what depends on it.

    Args:
        at: the slot.
        known: classes whose place is known.
        owned: classes that may stay open too if they select copies of what depends on it.

    Returns:
        Slots by number, or None if too little is known to place all others.
    """
    slots = block.slots
    found = {k for k, slot in enumerate(slots) if at in slot.within} | {at}
    while True:
        placed = [k for k in range(len(slots)) if k not in found]
        lost = {k for k in placed if slots[k].class_name not in known and slots[k].class_name}
        lost |= {k for k in placed if not found.isdisjoint(slots[k].within)}
        if not lost:
            return found
        selects = {w for k in found - {at} for w in slots[k].within} - set(slots[at].within)
        if not lost <= selects or any(slots[k].class_name not in owned for k in lost):
            return None
        found |= lost


def focus(block: Block, at: int, known: Arrays, owned: Collection[str]) -> Block | None:
    """One slot and what depends on it, with all other slots put in place.

    Args:
        at: the slot. What it is within has to be known or without a class.
        known: int64 of shape `(problems, *sizes of within, size)`, by class name.
        owned: as for `open_beside`.

    Returns:
        A block whose first slot is this one, within nothing: the slots that it was within are part
        of the batch. None if too little is known to place the other slots.
    """
    slots = block.slots
    open_slots = open_beside(block, at, known, owned)
    if open_slots is None:
        return None
    front = [*slots[at].within]
    placed = [k for k in range(len(slots)) if k not in open_slots]
    b = _in_place(block, placed, known)
    selectors = {w for k in open_slots for w in slots[k].within} - open_slots - set(front)
    kept = [*front, at, *sorted(selectors), *sorted(open_slots - {at})]
    held = [k for k in placed if k not in kept]
    folded = [
        side.permute(0, *(k + 1 for k in [*kept, *held]), side.dim() - 1)
        .flatten(len(kept) + 1)
        .flatten(0, len(front))
        for side in (block.a, b)
    ]
    renumbered = {k: new - len(front) for new, k in enumerate(kept)}
    remaining = tuple(
        replace(
            slots[k],
            class_name=slots[k].class_name if k in open_slots else None,
            within=tuple(renumbered[w] for w in slots[k].within if w not in front)
            if k in open_slots
            else (),
        )
        for k in kept[len(front) :]
    )
    return Block(folded[0], folded[1], remaining)


def paired(block: Block, problem: IntArray, unit_a: IntArray, unit_b: IntArray) -> Block:
    """Units of the first slot beside each other, a problem for every pair.

    Args:
        block: with a class in front that is within nothing.
        problem: int64 of shape (pairs,), which problem a pair belongs to.
        unit_a: int64 of shape (pairs,), the unit of the reference.
        unit_b: int64 of shape (pairs,), the unit of the model.

    Returns:
        A block of as many problems as there are pairs, without the first slot.
    """
    size = block.slots[0].size
    sides = [
        side.flatten(0, 1).index_select(0, torch.from_numpy(problem * size + unit).to(side.device))
        for side, unit in ((block.a, unit_a), (block.b, unit_b))
    ]
    slots = tuple(
        replace(slot, within=tuple(w - 1 for w in slot.within if w > 0)) for slot in block.slots[1:]
    )
    return Block(sides[0], sides[1], slots)


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products of all rows of a with all rows of b, problem by problem.

    Args:
        a: of shape (problems, rows, ...).
        b: of the same shape.

    Returns:
        Shape (problems, rows, rows).
    """
    return a.flatten(2) @ b.flatten(2).transpose(1, 2)


def agreement(block: Block, arrays: Arrays) -> torch.Tensor:
    """The inner product of a and the b that is put in place, for every problem.

    Args:
        arrays: of all its classes.

    Returns:
        float64 of shape (problems,).
    """
    b = _in_place(block, range(len(block.slots)), arrays)
    return (block.a * b).flatten(1).sum(dim=1, dtype=torch.float64)


def _in_place(block: Block, placed: Sequence[int], known: Arrays) -> torch.Tensor:
    """b with the given slots in the order of the reference."""
    slots = block.slots
    if all(slots[k].class_name is None for k in placed):
        return block.b
    sizes = [slots[k].size for k in placed]
    grids = dict(zip(placed, np.ix_(*map(np.arange, sizes)), strict=True))
    problem = np.arange(block.count).reshape(-1, *(1 for _ in placed))
    flat = np.zeros((block.count, *sizes), dtype=np.int64)
    for k in placed:
        source = grids[k]
        name = slots[k].class_name
        if name is not None:
            source = known[name][(problem, *(grids[w] for w in slots[k].within), grids[k])]
        flat = flat * slots[k].size + source
    others = [k for k in range(len(slots)) if k not in grids]
    order = [0, *(k + 1 for k in [*placed, *others]), block.b.dim() - 1]
    together = block.b.permute(order).flatten(1, len(placed))
    moved = _gathered(together, flat.reshape(block.count, -1)).unflatten(1, sizes)
    restored: torch.Tensor = moved.permute([order.index(dim) for dim in range(len(order))])
    return restored


def _gathered(tensor: torch.Tensor, index: IntArray) -> torch.Tensor:
    """Along the second axis, with an index of its own for each problem."""
    place = torch.from_numpy(np.ascontiguousarray(index)).to(tensor.device)
    if len(index) == 1:
        return tensor.index_select(1, place[0])
    return tensor[torch.arange(len(index), device=tensor.device)[:, None], place]
