"""Whether numbers along an axis may be equal, so that it depends on their order which is the
largest.

A search for the largest number returns the first of several equal ones, which is a different one
when units are permuted. Numbers that are computed from parameters of their own by smooth functions
are equal by accident only; those that were clipped, rounded or compared are not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, auto

import torch
from torch import Tensor


class Along(IntEnum):
    """How the numbers of a tensor differ along an axis.

    SAME: not at all. FLAT: they may be equal, and not only for exceptional inputs. TOP: all but
    the largest may be equal, as those that a softmax rounds to zero. TURNED: they make up vectors
    of different directions, the lengths of which may be equal. SMOOTH: each is a smooth function of
    parameters of its own, but all may be equal where something that they share is zero. APART: as
    smooth ones, and equal by accident only, whatever they share.
    """

    SAME = auto()
    FLAT = auto()
    TOP = auto()
    TURNED = auto()
    SMOOTH = auto()
    APART = auto()


class Zero(IntEnum):
    """Whether a row of numbers is zero other than by accident; CLIPPED: set to it one by one."""

    NEVER = auto()
    MAY = auto()
    CLIPPED = auto()


@dataclass(frozen=True)
class Spread:
    """How the numbers of a tensor differ: along each of its axes, and from zero.

    `sources` are the parameters that they are computed from, as bits; the first one is for inputs.
    """

    axes: tuple[Along, ...]
    zero: Zero
    sources: int = 0


class Later:
    """A spread that is found when it is asked for, which few models do.

    Args:
        find: from the spreads of the operands to this one.
        operands: whose spreads are found first.
    """

    def __init__(
        self, find: Callable[[Sequence[Spread]], Spread], operands: Sequence[Later] = ()
    ) -> None:
        self._find = find
        self._operands = tuple(operands)
        self._found: Spread | None = None

    def spread(self) -> Spread:
        """The spread, found without recursion: networks are deeper than calls may nest."""
        pending = [self]
        while pending:
            open_ones = [item for item in pending[-1]._operands if item._found is None]
            if open_ones:
                pending += open_ones
            else:
                pending.pop()._settle()
        return self._settle()

    def _settle(self) -> Spread:
        if self._found is None:
            self._found = self._find([item._settle() for item in self._operands])
            self._operands = ()
        return self._found


def known(spread: Spread) -> Later:
    """A spread that need not be looked for."""
    return Later(lambda _: spread)


def of_state(shape: Sequence[int], number: int) -> Spread:
    """A parameter: no two of its elements are equal except by accident."""
    return Spread(along_all(Along.APART, shape), Zero.NEVER, 2 << number)


def of_input(tensor: Tensor) -> Spread:
    """An input, whose axes do not move; it may well be zero in places."""
    return Spread(along_all(Along.FLAT, tensor.shape), Zero.MAY, 1)


def of_constant(tensor: Tensor) -> Spread:
    """A constant: there is nothing in it that moves."""
    return Spread(along_all(Along.SMOOTH, tensor.shape), Zero.MAY)


def unknown(
    shape: Sequence[int], operands: Sequence[Spread] = (), pointwise: bool = False
) -> Spread:
    """What an operator makes that no table lists."""
    clipped = pointwise or any(item.zero is Zero.CLIPPED for item in operands)
    zero = Zero.CLIPPED if clipped else Zero.MAY
    return Spread(along_all(Along.FLAT, shape), zero, sources_of(operands))


def sources_of(operands: Iterable[Spread]) -> int:
    """The parameters that some numbers are computed from."""
    return functools.reduce(operator.or_, (item.sources for item in operands), 0)


def along_all(along: Along, shape: Sequence[int]) -> tuple[Along, ...]:
    """The same along all axes, but for those along which there is only one number."""
    return tuple(along if size > 1 else Along.SAME for size in shape)


def of_view(base: Later, form: Tensor, view: Callable[[Tensor], Tensor]) -> Later:
    """What a view of a tensor holds; see `viewed`."""
    return Later(lambda found: viewed(found[0], form, view), [base])


def viewed(spread: Spread, form: Tensor, view: Callable[[Tensor], Tensor]) -> Spread:
    """What a view of a tensor holds.

    Args:
        spread: of the tensor.
        form: a tensor of its shape.
        view: how the view is made of it.
    """
    plain = torch.empty(form.shape, dtype=form.dtype, device="meta")
    try:
        moved = view(plain)
    except RuntimeError:  # only strides like those of the form can be viewed so
        return unknown(view(form).shape, [spread])
    axes = []
    for size, stride in zip(moved.shape, moved.stride(), strict=True):
        reach = stride * (size - 1)
        met = [
            along
            for along, own, step in zip(spread.axes, plain.shape, plain.stride(), strict=True)
            if own > 1 and step <= reach and stride < step * own
        ]
        axes.append(_merged(met) if stride and size > 1 else Along.SAME)
    return replace(spread, axes=tuple(axes))


def _merged(met: Sequence[Along]) -> Along:
    """Along an axis that runs through several."""
    different = set(met)
    if Along.SAME in different and len(different) > 1:
        return Along.FLAT
    return min(met, default=Along.SAME)
