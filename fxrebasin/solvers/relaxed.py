"""The weight objective over soft maps: doubly stochastic matrices where permutations would be.

A class that is within others has one matrix for every pair of copies, so that the map of a unit
inside is the product of the map of its copy and that of the unit within that pair of copies. Every
element of the group is a corner of this set, and every corner is an element of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from fxrebasin.indexing import Arrays, open_grids
from fxrebasin.layout import AxisGroup, IntArray, PermutationClass, Piece
from fxrebasin.solvers.assignment import assign_batch
from fxrebasin.solvers.pairs import Pair, make_pairs
from fxrebasin.solvers.weight_problem import WeightProblem

Maps: TypeAlias = Mapping[str, torch.Tensor]
"""By class name, of shape `(*copies, *copies of the model, size, size)`."""


class Relaxation:
    """The objective of weight matching as a polynomial in soft maps.

    Args:
        problem: what to match.
    """

    def __init__(self, problem: WeightProblem) -> None:
        self.classes = problem.classes
        self.sizes = {c.name: c.size for c in problem.classes}
        self.pairs = make_pairs(problem.layout, problem.state_a, problem.state_b, problem.names)
        held = {name for pair in self.pairs for axis in pair.axes for name in axis.names}
        self.free = [c for c in problem.classes if c.name in problem.free and c.name in held]
        wide = any(pair.dtype == torch.float64 for pair in self.pairs)
        self.dtype = torch.float64 if wide else torch.float32
        self.device = self.pairs[0].a.device if self.pairs else torch.device("cpu")
        self.degree: int = max((_degree(pair) for pair in self.pairs), default=0)
        self.scale: float = sum(
            float(pair.a.to(pair.dtype).norm()) * float(pair.b.to(pair.dtype).norm())
            for pair in self.pairs
        )
        self._fixed = self.corner(
            {c.name: _identity(c, self.sizes) for c in self.classes if c not in self.free}
        )

    def centre(self) -> dict[str, torch.Tensor]:
        """Maps that say nothing: every unit goes everywhere in equal parts."""
        return {
            c.name: torch.full(
                (*2 * self.copies(c), c.size, c.size),
                1 / c.size,
                dtype=self.dtype,
                device=self.device,
            )
            for c in self.free
        }

    def corner(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """The maps of permutations, the same for all copies of the model that could come here.

        Args:
            arrays: int64 by class name, `(*copies, size)`.
        """
        maps = {}
        for c in self.classes:
            if c.name in arrays:
                sources = torch.from_numpy(np.ascontiguousarray(arrays[c.name]))
                hot = self.cast(torch.nn.functional.one_hot(sources, c.size))
                copies = self.copies(c)
                spread = hot.reshape(*copies, *(1 for _ in copies), c.size, c.size)
                maps[c.name] = spread.expand(*copies, *copies, c.size, c.size)
        return maps

    def copies(self, c: PermutationClass) -> tuple[int, ...]:
        """Sizes of what a class is within."""
        return tuple(self.sizes[name] for name in c.within)

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor on the device and in the dtype of the maps."""
        return tensor.to(self.device, self.dtype)

    def completed(self, maps: Maps) -> dict[str, torch.Tensor]:
        """Maps of all classes; those that are not free stay where they are.

        Args:
            maps: of the free classes.
        """
        return {**self._fixed, **maps}

    def value(self, maps: Maps) -> float:
        """The objective.

        Args:
            maps: of the free classes.
        """
        with torch.no_grad():
            return sum(float(value) for value in self._agreements(maps))

    def gradient(self, maps: Maps) -> tuple[float, dict[str, torch.Tensor]]:
        """The objective and its derivatives, one tensor of the model at a time.

        Args:
            maps: of the free classes.
        """
        return gradient_of(self._agreements, maps)

    def rounded(self, maps: Maps) -> dict[str, IntArray]:
        """The permutations that agree most with soft maps, outer classes first.

        Args:
            maps: of the free classes.
        """
        arrays: dict[str, IntArray] = {}
        free = {c.name for c in self.free}
        within = {c.name: c.within for c in self.classes}
        for c in sorted(self.classes, key=lambda c: len(c.within)):
            if c.name not in free:
                arrays[c.name] = _identity(c, self.sizes)
                continue
            copies = self.copies(c)
            at = dict(zip(c.within, open_grids([*copies, 1])[:-1], strict=True))
            sources = [arrays[w][(*(at[o] for o in within[w]), at[w])] for w in c.within]
            full = [np.broadcast_to(x, (*copies, 1))[..., 0] for x in (*at.values(), *sources)]
            chosen = maps[c.name].detach().cpu().numpy()[tuple(full)]
            found = assign_batch(chosen.reshape(-1, c.size, c.size))
            arrays[c.name] = found.reshape(*copies, c.size)
        return arrays

    def moved(self, pair: Pair, maps: Maps) -> torch.Tensor:
        """A tensor of the model with soft maps in the place of permutations; differentiable.

        Args:
            pair: one of `pairs`.
            maps: of the free classes.
        """
        return mixed(self.cast(pair.b), pair.groups, self.completed(maps))

    def _agreement(self, pair: Pair, maps: Maps) -> torch.Tensor:
        moved = self.moved(pair, maps)
        total: torch.Tensor = (self.cast(pair.a) * moved).sum(dtype=torch.float64)
        return total

    def _agreements(self, maps: Maps) -> Iterator[torch.Tensor]:
        return (self._agreement(pair, maps) for pair in self.pairs)


def gradient_of(
    terms: Callable[[Maps], Iterable[torch.Tensor]], maps: Maps
) -> tuple[float, dict[str, torch.Tensor]]:
    """A sum and its derivatives; only one term is held in memory at a time.

    Args:
        terms: makes the terms of the sum, one after another.
        maps: what the sum is differentiated by.
    """
    with torch.enable_grad():
        leaves = {name: m.detach().requires_grad_() for name, m in maps.items()}
        total = 0.0
        for value in terms(leaves):
            if value.requires_grad:
                value.backward()
            total += float(value.detach())
    zeros = torch.zeros_like
    return total, {n: zeros(m) if m.grad is None else m.grad for n, m in leaves.items()}


def between(
    centre: Mapping[str, torch.Tensor], corner: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The point halfway between the centre and a corner: where ascents from random points start.

    Args:
        centre: maps that say nothing.
        corner: the maps of permutations.
    """
    return {name: torch.lerp(here, corner[name], 0.5) for name, here in centre.items()}


def mixed(tensor: torch.Tensor, groups: Sequence[AxisGroup], maps: Maps) -> torch.Tensor:
    """A tensor with soft maps in the place of permutations; differentiable.

    Args:
        tensor: of shape `(positions of each group..., rest)`, as `unfolded` makes it.
        groups: what its first axes are.
        maps: of all classes on them.
    """
    for dim, group in enumerate(groups):
        front = tensor.movedim(dim, 0)
        shape = front.shape
        rows = front.reshape(shape[0], -1)
        for piece in group.pieces:
            flat = torch.from_numpy(piece.positions.ravel()).to(tensor.device)
            whole = len(flat) == shape[0] and torch.equal(
                flat, torch.arange(len(flat), device=flat.device)
            )
            picked = rows if whole else rows.index_select(0, flat)
            moved = _mixed_piece(picked, piece, maps)
            rows = moved if whole else rows.index_copy(0, flat, moved)
        tensor = rows.reshape(shape).movedim(0, dim)
    return tensor


def _mixed_piece(rows: torch.Tensor, piece: Piece, maps: Maps) -> torch.Tensor:
    """The rows of a piece, `(positions, columns)`, mixed by the maps of its slots."""
    slots = piece.slots
    here, there = "abcdefgh"[: len(slots)], list("ijklmnop"[: len(slots)])
    for k, slot in enumerate(slots):
        if slot.class_name is None:
            there[k] = here[k]
    terms, operands = ["".join(there) + "z"], [rows.reshape(*piece.positions.shape, -1)]
    # Units within others first, so that what is summed last is the smallest.
    for k in sorted(range(len(slots)), key=lambda k: -len(slots[k].within)):
        slot = slots[k]
        if slot.class_name is not None:
            copy = "".join(here[w] for w in slot.within) + "".join(there[w] for w in slot.within)
            terms.append(copy + here[k] + there[k])
            operands.append(maps[slot.class_name])
    mixed_rows: torch.Tensor = torch.einsum(f"{','.join(terms)}->{here}z", *operands)
    return mixed_rows.reshape(rows.shape)


def _degree(pair: Pair) -> int:
    """How many maps are multiplied with each other in a tensor."""
    return sum(
        max((sum(s.class_name is not None for s in p.slots) for p in group.pieces), default=0)
        for group in pair.groups
    )


def _identity(c: PermutationClass, sizes: Mapping[str, int]) -> IntArray:
    copies = tuple(sizes[name] for name in c.within)
    return np.broadcast_to(np.arange(c.size, dtype=np.int64), (*copies, c.size)).copy()
