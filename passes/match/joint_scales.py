"""Factors of units that make the sum of all squares the least, of all classes at once.

The sum is convex in the logarithms of the factors. One class after another, layers that lie behind
each other close in slowly, as heat spreads along a rod; Newton's method on all of them takes a few
steps, each solved by conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.passes.match.seats import Seat, Seats

_STEPS = 100
_FARTHEST = 2.0
"""By how much a logarithm changes in one step at most."""
_SETTLED, _CLOSE = 1e-14, 1e-9
"""Steps that rounding alone explains; from the second on, if they do not fall any more."""
_ROUGHLY, _SOLVED = 1e-2, 1e-9
"""How small residuals are next to the first where equations count as solved: far from the end and
near it, where the last step says how near that is (Dembo, Eisenstat and Steihaug 1982)."""
_ITERATIONS = 1000
_HALVINGS = 40
_ENOUGH, _NEAR = 1e-4, 1e-5
"""The share of the expected descent that is asked for (Armijo 1966), and the steps that are taken
as they are, since rounding hides what they gain."""


@dataclass(frozen=True, eq=False)
class _Along:
    """How logarithms change a tensor along the axes of one group.

    Attributes:
        axis: of the sums of squares.
        length: of that axis.
        positions: along the axis.
        units: unknowns that act there.
        powers: to which their factors multiply.
    """

    axis: int
    length: int
    positions: Tensor
    units: Tensor
    powers: Tensor

    def spread(self, unknown: Tensor, rank: int) -> Tensor:
        """What unknowns add to the logarithm of each position."""
        found = torch.zeros(self.length, dtype=torch.float64)
        found.index_add_(0, self.positions, unknown[self.units] * self.powers)
        return found.reshape([-1 if k == self.axis else 1 for k in range(rank)])

    def gathered(self, values: Tensor, size: int) -> Tensor:
        """The sum of what a tensor holds at all positions of each unknown."""
        others = [k for k in range(values.dim()) if k != self.axis]
        at = values.sum(others) if others else values
        return torch.zeros(size, dtype=torch.float64).index_add_(
            0, self.units, at[self.positions] * self.powers
        )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Squares of a tensor, summed over all axes that no unknown acts along."""

    squares: Tensor
    along: tuple[_Along, ...]

    def factor(self, unknown: Tensor) -> Tensor:
        """The logarithm by which each square grows."""
        rank = self.squares.dim()
        found = self.along[0].spread(unknown, rank)
        for item in self.along[1:]:
            found = found + item.spread(unknown, rank)
        return found

    def gathered(self, values: Tensor, size: int) -> Tensor:
        """What all groups gather."""
        found = self.along[0].gathered(values, size)
        for item in self.along[1:]:
            found += item.gathered(values, size)
        return found


def joint_scales(
    names: Sequence[str], seats: Seats, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Positive factors of the units of some classes, of shape (copies, units), by the class.

    Units that have nothing but zeros on one side are left as they are.

    Args:
        names: of the classes.
        seats: of these.
        state: float64, by name.
    """
    scaled = {name: [seat for seat in seats[name] if seat.scale] for name in names}
    both = {True, False}
    scaled = {n: own for n, own in scaled.items() if {seat.scale > 0 for seat in own} == both}
    found: dict[str, Tensor] = {}
    for part in _connected(scaled):
        found |= _solved({name: scaled[name] for name in part}, state)
    return found


def _connected(scaled: Mapping[str, Sequence[Seat]]) -> list[list[str]]:
    """Classes that tensors connect, directly or through others."""
    on: dict[str, list[str]] = {}
    for name, own in scaled.items():
        for seat in own:
            on.setdefault(seat.place.state, []).append(name)
    left = dict.fromkeys(scaled)
    found = []
    while left:
        part, waiting = [], [next(iter(left))]
        while waiting:
            name = waiting.pop()
            if name in left:
                del left[name]
                part.append(name)
                waiting += [n for seat in scaled[name] for n in on[seat.place.state]]
        found.append(part)
    return found


def _solved(scaled: Mapping[str, Sequence[Seat]], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tuple(own[0].positions.shape[:2]) for name, own in scaled.items()}
    starts, size = {}, 0
    for name, (copies, units) in shapes.items():
        starts[name] = size
        size += copies * units
    sums = _sums_of(scaled, starts, state)
    logs = _least(sums, size).exp()
    return {
        name: logs[start : start + copies * units].reshape(copies, units)
        for (name, (copies, units)), start in zip(shapes.items(), starts.values(), strict=True)
    }


def _sums_of(
    scaled: Mapping[str, Sequence[Seat]], starts: Mapping[str, int], state: Mapping[str, Tensor]
) -> list[_Sums]:
    on: dict[str, dict[tuple[int, ...], list[tuple[int, Seat]]]] = {}
    for name, own in scaled.items():
        for seat in own:
            axes = seat.layout[seat.place.state][seat.place.group].axes
            on.setdefault(seat.place.state, {}).setdefault(axes, []).append((starts[name], seat))
    found = []
    for tensor, groups in on.items():
        held = state[tensor]
        kept = [axis for axes in groups for axis in axes]
        rest = [axis for axis in range(held.dim()) if axis not in kept]
        squares = held.square()
        squares = squares.sum(rest, keepdim=True) if rest else squares
        lengths = [_length(held, axes) for axes in groups]
        along = (_along(k, lengths[k], seats) for k, seats in enumerate(groups.values()))
        squares = squares.permute(*kept, *rest).reshape(lengths)
        found.append(_Sums(squares, tuple(along)))
    return found


def _length(tensor: Tensor, axes: Sequence[int]) -> int:
    found = 1
    for axis in axes:
        found *= tensor.shape[axis]
    return found


def _along(axis: int, length: int, seats: Sequence[tuple[int, Seat]]) -> _Along:
    positions, units, powers = [], [], []
    for start, seat in seats:
        copies, size, times = seat.positions.shape
        positions.append(seat.positions.reshape(-1))
        units.append(start + torch.arange(copies * size).repeat_interleave(times))
        powers.append(torch.full((copies * size * times,), 2.0 * seat.scale, dtype=torch.float64))
    return _Along(axis, length, torch.cat(positions), torch.cat(units), torch.cat(powers))


def _least(sums: Sequence[_Sums], size: int) -> Tensor:
    """The logarithms at which the sum of all squares is least; zero where nothing says so."""
    is_open = _open(sums, size)
    unknown = torch.zeros(size, dtype=torch.float64)
    terms = [item.squares for item in sums]
    last = float("inf")
    for _ in range(_STEPS):
        slope = _gathered(sums, terms, size) * is_open
        step = _conjugate(sums, terms, -slope, is_open, max(_SOLVED, min(_ROUGHLY, last)))
        length = float(step.abs().max())
        if length <= _SETTLED or (length <= _CLOSE and length >= last):
            break
        last = length
        share = min(1.0, _FARTHEST / length)
        unknown, terms = _descended(sums, unknown, step * share, float(slope @ step) * share, terms)
    return unknown


def _open(sums: Sequence[_Sums], size: int) -> Tensor:
    """One for units that hold something on both sides, else zero."""
    found = []
    for sign in (1, -1):
        held = torch.zeros(size, dtype=torch.float64)
        for item in sums:
            for one in item.along:
                powers = (one.powers * sign).clamp_min(0)
                side = _Along(one.axis, one.length, one.positions, one.units, powers)
                held += side.gathered(item.squares, size)
        found.append(held > 0)
    return (found[0] & found[1]).double()


def _gathered(sums: Sequence[_Sums], values: Sequence[Tensor], size: int) -> Tensor:
    found = torch.zeros(size, dtype=torch.float64)
    for item, value in zip(sums, values, strict=True):
        found += item.gathered(value, size)
    return found


def _descended(
    sums: Sequence[_Sums],
    unknown: Tensor,
    step: Tensor,
    expected: float,
    terms: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The unknowns after as much of a step as lowers the sum, and the squares there."""
    before = sum(float(term.sum()) for term in terms)
    share = 1.0
    for _ in range(_HALVINGS):
        there = unknown + share * step
        moved = [item.squares * item.factor(there).exp() for item in sums]
        after = sum(float(term.sum()) for term in moved)
        if after <= before + _ENOUGH * share * expected or float(step.abs().max()) < _NEAR:
            break
        share /= 2
    return there, moved


def _conjugate(
    sums: Sequence[_Sums], terms: Sequence[Tensor], right: Tensor, is_open: Tensor, share: float
) -> Tensor:
    """The step that makes slopes zero to first order, up to a share (Hestenes and Stiefel 1952)."""
    bend = torch.zeros_like(right)
    for item, term in zip(sums, terms, strict=True):
        for one in item.along:
            squared = _Along(one.axis, one.length, one.positions, one.units, one.powers.square())
            bend += squared.gathered(term, len(right))
    inverse = torch.where(is_open > 0, 1 / torch.where(bend > 0, bend, 1.0), 0.0)
    found, rest = torch.zeros_like(right), right
    ahead = inverse * rest
    direction, size = ahead, float(rest @ ahead)
    enough = share**2 * size
    for _ in range(_ITERATIONS):
        if size <= enough or size == 0:
            break
        pushed = [term * item.factor(direction) for item, term in zip(sums, terms, strict=True)]
        image = _gathered(sums, pushed, len(right)) * is_open
        curve = float(direction @ image)
        if curve <= 0:  # a way along which nothing changes: scales of two classes that cancel
            break
        far = size / curve
        found, rest = found + far * direction, rest - far * image
        ahead = inverse * rest
        last, size = size, float(rest @ ahead)
        direction = ahead + size / last * direction
    return found
