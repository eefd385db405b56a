"""Gains of pairing each row of the reference with each row of the model, kept up to date.

The gains of a class are the sum over the tensors that hold it of a product of matrices: units along
one side, everything else (as far as it is decided) along the other. When a neighbour changes, only
the columns that changed are multiplied again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fxrebasin.layout import AxisGroup, IntArray, Piece, Slot
from fxrebasin.solvers.pairs import Pair, gathered
from fxrebasin.solvers.placement import Axis, Placement

# Elements of one operand of one product: large enough for speed, small enough to be no burden.
_MOST_ELEMENTS = 2**20
# Operands with fewer columns than this are joined before they are multiplied.
_NARROW = 64


@dataclass
class Operand:
    """Some rows of one pair, and the axes that lie across them.

    Args:
        pair: the tensors.
        dim: which of their groups the rows are on.
        positions: int64 of shape (rows, held): flat positions on that group; those of a row beyond
            the first belong to slots of the piece that are not matched here.
        held: the axis of the second coordinate of `positions`, if it has more than one position.
    """

    pair: Pair
    dim: int
    positions: IntArray
    held: Axis | None = None
    axes: list[Axis] = field(init=False)
    others: list[int] = field(init=False)
    start: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.others = [d for d in range(len(self.pair.axes)) if d != self.dim]
        self.axes = [self.pair.axes[d] for d in self.others]
        if self.held is not None:
            self.axes.insert(0, self.held)
        flat = self.positions.ravel()
        first = int(flat[0])
        in_order = np.array_equal(flat, np.arange(first, first + flat.size))
        self.start = first if in_order else None

    def included(self) -> int:
        """Elements per row whose place is decided, as of the last look at the axes."""
        return self.pair.a.shape[-1] * math.prod(axis.included for axis in self.axes)

    def matrix(self, tensor: torch.Tensor, picks: Sequence[IntArray]) -> torch.Tensor:
        """The rows of a or b, at the picked positions of the axes.

        Args:
            tensor: `pair.a` or `pair.b`.
            picks: int64, one for each of `axes`.

        Returns:
            Shape (rows, columns), in the dtype to compute in.
        """
        x = tensor
        if self.start is None:
            x = gathered(x, self.dim, self.positions.ravel())
        else:
            x = x.narrow(self.dim, self.start, self.positions.size)
        held = picks[: len(picks) - len(self.others)]
        # As long as axes are in the order of the memory, whole runs are moved.
        for dim, pick in zip(self.others, picks[len(held) :], strict=True):
            x = gathered(x, dim, pick)
        x = x.movedim(self.dim, 0).unflatten(0, self.positions.shape)
        for pick in held:
            x = gathered(x, 1, pick)
        columns: torch.Tensor = x.flatten(1)
        return columns.to(self.pair.a.device, self.pair.dtype)


class Gram:
    """Inner products of every row of a with every row of b, over the columns that are decided.

    Args:
        rows: number of rows on each side.
        operands: what is summed.
    """

    def __init__(self, rows: int, operands: Sequence[Operand]) -> None:
        self.rows = rows
        self.operands = list(operands)
        self.names = frozenset(n for o in operands for axis in o.axes for n in axis.names)
        wide = any(o.pair.dtype == torch.float64 for o in operands)
        self._dtype = torch.float64 if wide else torch.float32
        self._device = operands[0].pair.a.device
        self.forget()

    def forget(self) -> None:
        """Give the memory back; the next update starts over."""
        self._sum: torch.Tensor | None = None
        self._seen: list[list[IntArray] | None] = [None] * len(self.operands)

    @property
    def kept_bytes(self) -> int:
        """Memory that is held for the next update."""
        return 0 if self._sum is None else self._sum.nbytes

    def _like(self, operand: torch.Tensor) -> torch.Tensor:
        """An operand on the device and in the dtype of the sum."""
        return operand.to(self._device, self._dtype)

    def update(self, placement: Placement) -> torch.Tensor:
        """Bring the sum up to date.

        Args:
            placement: what is decided.

        Returns:
            Shape (rows, rows); it belongs to this object, and changes with the next update.
        """
        if self._sum is None:
            self._sum = torch.zeros(self.rows, self.rows, dtype=self._dtype, device=self._device)
        narrow: list[tuple[torch.Tensor, torch.Tensor]] = []
        for k, operand in enumerate(self.operands):
            now = [axis.source(placement) for axis in operand.axes]
            for a, b in _changes(operand, self._seen[k], now):
                if a.shape[1] < _NARROW:
                    narrow.append((self._like(a), self._like(b)))
                else:
                    add_products(self._sum, self._like(a), self._like(b))
            self._seen[k] = now
        if narrow:
            a, b = (torch.cat(side, dim=1) for side in zip(*narrow, strict=True))
            add_products(self._sum, a, b)
        return self._sum

    def outline(self, placement: Placement) -> torch.Tensor:
        """Gains from what is still open, by features that its order cannot change.

        Each row is described by its open elements in ascending order. That says little, but it is
        all there is where nothing beside a class is decided yet.

        Args:
            placement: what is decided.

        Returns:
            Shape (rows, rows).
        """
        total = torch.zeros(self.rows, self.rows, dtype=self._dtype, device=self._device)
        for operand in self.operands:
            sources = [axis.source(placement) for axis in operand.axes]
            if not operand.pair.varies or all((source >= 0).all() for source in sources):
                continue
            picks = [np.flatnonzero(s < 0) if (s < 0).any() else np.arange(len(s)) for s in sources]
            a, b = (
                self._like(operand.matrix(side, picks)).sort(dim=1).values
                for side in (operand.pair.a, operand.pair.b)
            )
            add_products(total, a, b)
        return total


def add_products(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add inner products of all rows of a with all rows of b, in place.

    Args:
        total: of shape (rows, rows).
        a: of shape (rows, columns).
        b: of the same shape.
    """
    total.addmm_(a, b.T)


def _changes(
    operand: Operand, seen: list[IntArray] | None, now: list[IntArray]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Matrices whose products, summed, lead from the sources seen before to those of now."""
    if not operand.axes:
        if seen is None:
            pair = operand.pair
            yield operand.matrix(pair.a, []), operand.matrix(pair.b, [])
        return
    if seen is None:
        seen = [np.full_like(source, -1) for source in now]
    # One axis after the other: those before it as they are now, those after it as they were.
    for k in range(len(now)):
        if now[k] is seen[k]:
            continue
        sources = [*now[:k], now[k], *seen[k + 1 :]]
        picks = [np.flatnonzero(source >= 0) for source in sources]
        width = operand.pair.a.shape[-1] * math.prod(len(p) for i, p in enumerate(picks) if i != k)
        if width == 0:
            continue
        step = max(1, _MOST_ELEMENTS // (width * len(operand.positions)))
        fresh = np.flatnonzero((now[k] >= 0) & (seen[k] < 0))
        moved = np.flatnonzero((now[k] != seen[k]) & (seen[k] >= 0))
        for part in _parts(fresh, step):
            a, b = _sides(operand, sources, picks, k, part)
            yield a, b
        for part in _parts(moved, step):
            a, b = _sides(operand, sources, picks, k, part)
            before = [*sources[:k], seen[k], *sources[k + 1 :]]
            old = _side_b(operand, before, picks, k, part)
            yield a, torch.sub(b, old, out=None if _shares(old, operand.pair.b) else old)


def _shares(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors lie in the same memory."""
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _sides(
    operand: Operand, sources: list[IntArray], picks: list[IntArray], k: int, part: IntArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both operands at `part` of axis k and at the picks of the others."""
    at = [*picks[:k], part, *picks[k + 1 :]]
    return operand.matrix(operand.pair.a, at), _side_b(operand, sources, picks, k, part)


def _side_b(
    operand: Operand, sources: list[IntArray], picks: list[IntArray], k: int, part: IntArray
) -> torch.Tensor:
    """The operand of b that lies there according to `sources`."""
    at = [*picks[:k], part, *picks[k + 1 :]]
    taken = [source[where] for source, where in zip(sources, at, strict=True)]
    return operand.matrix(operand.pair.b, taken)


def _parts(positions: IntArray, step: int) -> Iterator[IntArray]:
    for start in range(0, len(positions), step):
        yield positions[start : start + step]


def held_axis(slots: Sequence[Slot]) -> Axis | None:
    """The axis of slots of a piece that are not matched, or None if there is one position only.

    Args:
        slots: whose `within` refers to each other.
    """
    shape = tuple(slot.size for slot in slots)
    total = math.prod(shape)
    if total == 1:
        return None
    piece = Piece(tuple(slots), np.arange(total, dtype=np.int64).reshape(shape))
    return Axis(AxisGroup((0,), (piece,)).pieces, total)
