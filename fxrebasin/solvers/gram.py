"""Gains of pairing each row of the reference with each row of the model, kept up to date.

The gains of a class are the sum over the tensors that hold it of a product of matrices: units along
one side, everything else (as far as it is decided) along the other. When a neighbour changes, only
the columns that changed are multiplied again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from fxrebasin.layout import AxisGroup, IntArray, Piece, Slot
from fxrebasin.solvers.pairs import Pair, gathered, is_plain, is_run, shares_memory
from fxrebasin.solvers.placement import Axis, Placement

# Elements of one operand of one product, and columns of it where there are many rows: large enough
# for speed, small enough to be no burden.
_MOST_ELEMENTS = 2**18
_MOST_COLUMNS = 512
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
        self.start = int(flat[0]) if is_run(flat) else None

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
        if self._is_scattered(tensor, picks):
            return self._runs(tensor, picks[0])
        return self._in_rows(self._picked(tensor, picks), picks)

    def difference(self, now: Sequence[IntArray], before: Sequence[IntArray]) -> torch.Tensor:
        """The rows of b at some positions less those at others.

        Args:
            now: int64, one for each of `axes`.
            before: int64, as many positions of each.

        Returns:
            Shape (rows, columns), in the dtype to compute in.
        """
        moved = self.matrix(self.pair.b, now)
        old = self.matrix(self.pair.b, before)
        return torch.sub(moved, old, out=None if shares_memory(old, self.pair.b) else old)

    def _is_scattered(self, tensor: torch.Tensor, picks: Sequence[IntArray]) -> bool:
        """Whether rows are made of runs that lie apart, as in the weights of a convolution."""
        return (
            self.held is None
            and self.start is not None
            and len(picks) == 1
            and tensor.shape[-1] > 1
            and (self.dim > 0 or not is_run(picks[0]))
            and is_plain(tensor)
        )

    def _runs(self, tensor: torch.Tensor, pick: IntArray) -> torch.Tensor:
        """Rows put together from the runs along the last axis, each of which is moved once."""
        length = tensor.shape[-1]
        strides = (tensor.shape[1], 1)
        rows = self.positions[:, 0] * strides[self.dim]
        at = rows[:, None] + pick * strides[1 - self.dim]
        runs = tensor.numpy().reshape(-1, length).take(at.reshape(-1), axis=0)
        columns = torch.from_numpy(runs).view(len(rows), -1)
        return columns.to(self.pair.a.device, self.pair.dtype)

    def _picked(self, tensor: torch.Tensor, picks: Sequence[IntArray]) -> torch.Tensor:
        """The rows, at the picked positions of the other groups, with axes as they were."""
        x = tensor
        if self.start is None:
            x = gathered(x, self.dim, self.positions.ravel())
        elif self.positions.size != x.shape[self.dim]:
            x = x.narrow(self.dim, self.start, self.positions.size)
        # As long as axes are in the order of the memory, whole runs are moved.
        for dim, pick in zip(self.others, picks[len(picks) - len(self.others) :], strict=True):
            if pick is not self.pair.axes[dim].everything:
                x = gathered(x, dim, pick)
        return x.to(self.pair.a.device, self.pair.dtype)

    def _in_rows(self, x: torch.Tensor, picks: Sequence[IntArray]) -> torch.Tensor:
        """The rows in front, and everything else in one axis behind them."""
        if self.dim:
            x = x.movedim(self.dim, 0)
        if self.held is None:
            return x.reshape(len(self.positions), -1)
        return gathered(x.unflatten(0, self.positions.shape), 1, picks[0]).flatten(1)


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
        self._fixed = [o for o in operands if not o.axes]
        self._moving = [o for o in operands if o.axes]
        first = operands[0].pair
        wide = any(o.pair.dtype == torch.float64 for o in operands)
        self._dtype = torch.float64 if wide else torch.float32
        self._device = first.a.device
        self._alike = all(
            o.pair.dtype == self._dtype and o.pair.a.device == self._device for o in operands
        )
        self.forget()

    def forget(self) -> None:
        """Give the memory back; the next update starts over."""
        self._sum: torch.Tensor | None = None
        self._seen: list[Sequence[IntArray | None]] = [[None] * len(o.axes) for o in self._moving]

    @cached_property
    def _fixed_elements(self) -> int:
        """Elements of all rows that tell them apart whatever is decided."""
        return self.rows * sum(o.pair.a.shape[-1] for o in self._fixed if o.pair.varies)

    def decided(self, placement: Placement) -> int:
        """Elements of all rows whose place is decided, of tensors that tell rows apart.

        Args:
            placement: what is decided.
        """
        total = self._fixed_elements
        for operand in self._moving:
            if operand.pair.varies:
                for axis in operand.axes:
                    axis.source(placement)
                total += self.rows * operand.included()
        return total

    @property
    def full_bytes(self) -> int:
        """Memory that is held after an update."""
        return self.rows**2 * self._dtype.itemsize

    @property
    def kept_bytes(self) -> int:
        """Memory that is held for the next update."""
        return 0 if self._sum is None else self.full_bytes

    def _like(self, operand: torch.Tensor) -> torch.Tensor:
        """An operand on the device and in the dtype of the sum."""
        return operand if self._alike else operand.to(self._device, self._dtype)

    def update(self, placement: Placement) -> torch.Tensor:
        """Bring the sum up to date.

        Args:
            placement: what is decided.

        Returns:
            Shape (rows, rows); it belongs to this object, and changes with the next update.
        """
        narrow: list[tuple[torch.Tensor, torch.Tensor]] = []
        for a, b in self._changes(placement):
            if a.shape[1] < _NARROW:
                narrow.append((a, b))
            else:
                add_products(self._kept(), a, b)
        if narrow:
            a, b = (torch.cat(side, dim=1) for side in zip(*narrow, strict=True))
            add_products(self._kept(), a, b)
        return self._kept()

    def _kept(self) -> torch.Tensor:
        """The sum, zeros at first."""
        if self._sum is None:
            self._sum = torch.zeros(self.rows, self.rows, dtype=self._dtype, device=self._device)
        return self._sum

    def _changes(self, placement: Placement) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Matrices whose products lead from the last update to what is decided now."""
        for operand in self._fixed if self._sum is None else ():
            a, b = (operand.matrix(side, []) for side in (operand.pair.a, operand.pair.b))
            yield self._like(a), self._like(b)
        for k, operand in enumerate(self._moving):
            now = [axis.source(placement) for axis in operand.axes]
            if any(map(operator.is_not, now, self._seen[k])):
                for a, b in _changes(operand, self._seen[k], now):
                    yield self._like(a), self._like(b)
                self._seen[k] = now

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
        for operand in self._moving:
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
    operand: Operand, seen: Sequence[IntArray | None], now: Sequence[IntArray]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Matrices whose products, summed, lead from the sources seen before to those of now.

    Sources that are None are open everywhere.
    """
    pair, axes = operand.pair, operand.axes
    # One axis after the other: those before it as they are now, those after it as they were.
    for k in range(len(now)):
        sources = [*now[: k + 1], *seen[k + 1 :]]
        if now[k] is seen[k] or any(source is None for source in sources):
            continue
        known = [source for source in sources if source is not None]
        picks = [_decided(axis, source) for axis, source in zip(axes, known, strict=True)]
        width = pair.a.shape[-1] * math.prod(len(p) for i, p in enumerate(picks) if i != k)
        if width == 0:
            continue
        rows = len(operand.positions)
        step = max(1, max(_MOST_ELEMENTS, rows * _MOST_COLUMNS) // (width * rows))
        old = seen[k]
        fresh = picks[k] if old is None else np.flatnonzero((now[k] >= 0) & (old < 0))
        for part in _parts(fresh, step):
            at = [*picks[:k], part, *picks[k + 1 :]]
            b = operand.matrix(pair.b, _taken(axes, known, at))
            yield operand.matrix(pair.a, at), b
        if old is None:
            continue
        before = [*known[:k], old, *known[k + 1 :]]
        for part in _parts(np.flatnonzero((now[k] != old) & (old >= 0)), step):
            at = [*picks[:k], part, *picks[k + 1 :]]
            b = operand.difference(_taken(axes, known, at), _taken(axes, before, at))
            yield operand.matrix(pair.a, at), b


def _decided(axis: Axis, source: IntArray) -> IntArray:
    """Positions of an axis whose source is known."""
    if source.min() >= 0:
        return axis.everything
    return np.flatnonzero(source >= 0)


def _taken(
    axes: Sequence[Axis], sources: Sequence[IntArray], at: Sequence[IntArray]
) -> list[IntArray]:
    """Where some positions of each axis come from."""
    return [
        source if where is axis.everything else source[where]
        for axis, source, where in zip(axes, sources, at, strict=True)
    ]


def _parts(positions: IntArray, step: int) -> Iterator[IntArray]:
    if len(positions) <= step:
        yield from (positions,) if len(positions) else ()
        return
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
