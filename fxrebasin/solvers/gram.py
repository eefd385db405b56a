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

from fxrebasin.layout import AxisGroup, FloatArray, IntArray, Piece, Slot
from fxrebasin.solvers.pairs import Pair, blocks_of, gathered, is_run, lies_in
from fxrebasin.solvers.placement import Axis, Placement

# How many elements of an operand are multiplied at once: this share of all that a sum is over, but
# not fewer than are worth a call, nor more than fit into a processor's cache.
_SHARE = 8
_FEWEST, _MOST = 2**17, 2**20
# Columns of one operand for which any number of rows is multiplied at once.
_COLUMNS = 512
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
    _memory: tuple[FloatArray, FloatArray] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.others = [d for d in range(len(self.pair.axes)) if d != self.dim]
        self.axes = [self.pair.axes[d] for d in self.others]
        if self.held is not None:
            self.axes.insert(0, self.held)
        if self.pair.axes[self.dim].is_one_class:
            self.start = 0
        else:
            flat = self.positions.ravel()
            self.start = int(flat[0]) if is_run(flat) else None
        in_runs = not self.others or (len(self.others) == 1 and self.pair.a.shape[-1] > 1)
        plain = in_runs and self.held is None and self.start is not None
        self._memory = self.pair.memory if plain else None

    def matrix(self, tensor: torch.Tensor, picks: Sequence[IntArray]) -> torch.Tensor:
        """The rows of a or b, at the picked positions of the axes.

        Args:
            tensor: `pair.a` or `pair.b`.
            picks: int64, one for each of `axes`.

        Returns:
            Shape (rows, columns), in the dtype to compute in.
        """
        if self._memory is not None:
            a, b = self._memory
            return self._in_runs(b if tensor is self.pair.b else a, picks)
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
        return torch.sub(moved, old, out=None if lies_in(old, self.pair.b) else old)

    def _in_runs(self, memory: FloatArray, picks: Sequence[IntArray]) -> torch.Tensor:
        """Rows put together from the runs along the last axis, each of which is moved once."""
        count, pick = len(self.positions), picks[0] if picks else None
        rows = slice(self.start or 0, (self.start or 0) + count)
        if pick is None:
            found = memory[rows]
        elif pick is self.axes[0].everything or is_run(pick):
            along = slice(pick[0], pick[0] + len(pick))
            if self.dim:
                # Torch transposes with all threads; numpy gathers with one.
                turned = torch.from_numpy(memory[along, rows]).transpose(0, 1)
                return turned.reshape(count, -1)
            found = memory[rows, along]
        elif self.dim:
            at = self.positions[:, :1] + pick * memory.shape[1]
            found = memory.reshape(-1, memory.shape[-1]).take(at.reshape(-1), axis=0)
        else:
            found = memory[rows].take(pick, axis=1)
        return torch.from_numpy(found.reshape(count, -1))

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
        elements = sum(o.pair.a.numel() for o in operands)
        self._at_once = max(
            min(max(_FEWEST, elements // _SHARE), _MOST), rows * min(_COLUMNS, rows // 2)
        )
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
        """Elements of a row that tell it from others whatever is decided."""
        return sum(o.pair.telling_columns for o in self._fixed)

    def decided(self, placement: Placement) -> int:
        """Elements of all rows that tell rows apart and whose place is decided.

        Args:
            placement: what is decided.
        """
        total = self._fixed_elements
        for operand in self._moving:
            elements = operand.pair.telling_columns
            for axis in operand.axes:
                axis.source(placement)
                elements *= axis.included
            total += elements
        return self.rows * total

    @property
    def full_bytes(self) -> int:
        """Memory that is held after an update."""
        return self.rows**2 * self._dtype.itemsize

    @property
    def is_small(self) -> bool:
        """Whether that is less than the tensors take that are summed over."""
        return self.full_bytes < sum(operand.pair.a.nbytes for operand in self.operands)

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
                self._sum = add_products(self._sum, a, b)
        if len(narrow) > 1:
            a, b = (torch.cat(side, dim=1) for side in zip(*narrow, strict=True))
            narrow = [(a, b)]
        for a, b in narrow:
            self._sum = add_products(self._sum, a, b)
        if self._sum is None:
            self._sum = self._zeros()
        return self._sum

    def add_to(self, total: torch.Tensor, placement: Placement, sign: int = 1) -> None:
        """Add what an update from nothing would come to, without a matrix of its own.

        Args:
            total: of shape (rows, rows); changed in place.
            placement: what is decided.
            sign: -1 to take it away again.
        """
        for a, b in self._changes(placement):
            total.addmm_(a.to(total.dtype), b.T.to(total.dtype), alpha=sign)
        self.forget()

    def _zeros(self) -> torch.Tensor:
        """A sum of nothing."""
        return torch.zeros(self.rows, self.rows, dtype=self._dtype, device=self._device)

    def _changes(self, placement: Placement) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Matrices whose products lead from the last update to what is decided now."""
        for operand in self._fixed if self._sum is None else ():
            a, b = (operand.matrix(side, []) for side in (operand.pair.a, operand.pair.b))
            yield self._like(a), self._like(b)
        for k, operand in enumerate(self._moving):
            now = [axis.source(placement) for axis in operand.axes]
            if any(map(operator.is_not, now, self._seen[k])):
                changes = _changes if len(now) > 1 else _changes_along_one
                for a, b in changes(operand, self._seen[k], now, self._at_once):
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
        total = self._zeros()
        for operand in self._moving:
            sources = [axis.source(placement) for axis in operand.axes]
            if not operand.pair.telling_columns or all((source >= 0).all() for source in sources):
                continue
            picks = [np.flatnonzero(s < 0) if (s < 0).any() else np.arange(len(s)) for s in sources]
            a, b = (
                _with_sorted_rows(self._like(operand.matrix(side, picks)))
                for side in (operand.pair.a, operand.pair.b)
            )
            add_products(total, a, b)
        return total


def add_products(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Add inner products of all rows of a with all rows of b.

    Args:
        total: of shape (rows of a, rows of b); None if these are the first.
        a: of shape (rows, columns).
        b: of shape (rows, columns).

    Returns:
        The total: the one given, changed in place, or a new one.
    """
    return a @ b.T if total is None else total.addmm_(a, b.T)


def _changes(
    operand: Operand, seen: Sequence[IntArray | None], now: Sequence[IntArray], at_once: int
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
        step = _step(operand, width, at_once)
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


def _changes_along_one(
    operand: Operand, seen: Sequence[IntArray | None], now: Sequence[IntArray], at_once: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same for an operand with one axis, as nearly all have."""
    pair, (axis,), (new,), (old,) = operand.pair, operand.axes, now, seen
    step = _step(operand, pair.a.shape[-1], at_once)
    if old is None:
        fresh = axis.everything if axis.included == axis.total else np.flatnonzero(new >= 0)
    else:
        moved = np.flatnonzero(new != old)
        was_open = old[moved] < 0
        fresh = moved[was_open]
        for part in _parts(moved[~was_open], step):
            yield operand.matrix(pair.a, [part]), operand.difference([new[part]], [old[part]])
    for part in _parts(fresh, step):
        taken = new if part is axis.everything else new[part]
        yield operand.matrix(pair.a, [part]), operand.matrix(pair.b, [taken])


def _step(operand: Operand, width: int, at_once: int) -> int:
    """How many positions of an axis are multiplied at once, each of so many elements a row."""
    return max(1, at_once // (width * len(operand.positions)))


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
    """Positions in parts of about equal length, close to a given one."""
    count = len(positions)
    parts = max(1, round(count / step))
    for k in range(parts if count else 0):
        yield positions if parts == 1 else positions[k * count // parts : (k + 1) * count // parts]


def _with_sorted_rows(x: torch.Tensor) -> torch.Tensor:
    """Each row in ascending order; few at a time, as sorting takes several times their memory."""
    found = torch.empty_like(x, memory_format=torch.contiguous_format)
    for rows, into in zip(blocks_of(x), blocks_of(found), strict=True):
        torch.sort(rows, dim=1, out=(into, torch.empty(0, dtype=torch.int64, device=x.device)))
    return found


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
