"""The rule by which models are aligned in rounds with the mean of the others, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from fxrebasin.counted import counted
from fxrebasin.layout import Layout
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.pairs import view_of_reals

_MOST_PARTS = 8
_BLOCK = 2**22

Orders = TypeVar("Orders")
Mean = TypeVar("Mean")


@dataclass(frozen=True)
class Turn:
    """Which models decide at once.

    Args:
        sweep: over all models, from 0.
        part: number of the part that they are.
        parts: in how many all models are cut; those that follow each other are in different ones.
    """

    sweep: int
    part: int
    parts: int

    def is_of(self, index: int) -> bool:
        """Whether a model is one of them; the first model never moves.

        Args:
            index: of the model.

        Example:
            >>> [k for k in range(6) if Turn(sweep=0, part=1, parts=2).is_of(k)]
            [1, 3, 5]
        """
        return index > 0 and index % self.parts == self.part


class Aligning(Protocol[Orders, Mean]):
    """Models that can be aligned with their mean, in memory or in files."""

    orders: Orders
    """Of the units of all models at present."""

    interrupted: bool
    """Whether there are to be no more turns."""

    def mean(self, orders: Orders) -> Mean:
        """The mean of all models, each in its order."""

    def length(self, mean: Mean) -> float:
        """Squared length of a mean, in what is compared."""

    def turned(self, mean: Mean, turn: Turn) -> Orders | None:
        """The orders after each model of a turn was aligned with the mean of the others; None if
        none of them moved."""


def settle(models: Aligning[Orders, Mean], most_sweeps: int) -> bool:
    """Align models with the mean of the others, turn by turn, until none moves for the better.

    Models of a turn do not wait for each other. What all of them decide at once may fit together
    badly: where the mean would be shorter afterwards, which is when all pairs agree less, a turn
    does not count, and from then on half as many models decide at once, down to one of eight; with
    up to nine models that is one after the other.

    Args:
        models: to align; their orders are changed.
        most_sweeps: over the models.

    Returns:
        Whether nothing could move any more.
    """
    mean, parts = models.mean(models.orders), 1
    for sweep in range(most_sweeps):
        was, moved = parts, False
        for part in range(was):
            if parts > was or models.interrupted:
                break
            found = models.turned(mean, Turn(sweep, part, parts))
            if found is None:
                continue
            theirs = models.mean(found)
            if models.length(theirs) > models.length(mean) * (1 + ROUNDING):
                models.orders, mean, moved = found, theirs, True
            else:
                parts = min(2 * parts, _MOST_PARTS)
        if models.interrupted:
            return False
        if parts == was and not moved:
            return True
    return False


def take_out(mean: torch.Tensor, own: torch.Tensor, share: float) -> None:
    """Turn a tensor of the mean of all models into one of the mean of the others.

    Args:
        mean: changed in place.
        own: of the model that is taken out, as it lies in the mean.
        share: how much of the mean it is, below 1.
    """
    if not mean.ndim:
        mean, own = mean.view(1), own.view(1)
    rows = max(1, _BLOCK * mean.shape[0] // max(1, mean.numel()))
    for all_of_them, one in zip(mean.split(rows), own.split(rows), strict=True):
        all_of_them.sub_(one.to(mean.dtype), alpha=share).div_(1 - share)


def squared_length(name: str, tensors: Iterable[tuple[int, torch.Tensor]], layout: Layout) -> float:
    """Of a tensor, in what is compared.

    Args:
        name: of the tensor.
        tensors: its parts, each with the number of its first row.
        layout: where its units are.
    """
    groups = layout.get(name, ())
    reals = (view_of_reals(counted(tensor, groups, first)) for first, tensor in tensors)
    return sum(float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2 for x in reals)
