"""Correlations of the units of two models, collected batch by batch.

Only sums are kept: n² products for the n units of each model. Every unit is shifted by its mean
over the first batch, which keeps the sums accurate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Piece, Slot
from fxrebasin.solvers.weight_problem import WeightProblem

# A unit whose variance is below this share of its mean square is constant up to rounding.
_CONSTANT = 1e-10


class Correlation:
    """Correlations between the units of both models along one axis.

    Args:
        group: the pieces with units on that axis.
    """

    def __init__(self, group: AxisGroup) -> None:
        self.group = group
        self._count = 0
        self._shift: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []
        self._products: list[torch.Tensor] = []

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Take in samples.

        Args:
            a: of the reference, `(samples, units)`.
            b: of the model, for the same data.
        """
        if not self._shift:
            self._shift = [x.mean(dim=0) for x in (a, b)]
        sides = [x - shift for x, shift in zip((a, b), self._shift, strict=True)]
        wide = [x.to(sum_device(x), torch.float64) for x in sides]
        self._sums = _added(self._sums, [x.sum(dim=0) for x in wide])
        self._squares = _added(self._squares, [x.square().sum(dim=0) for x in wide])
        places = [torch.from_numpy(piece.positions.ravel()) for piece in self.group.pieces]
        products = [sides[0][:, at.to(a.device)].T @ sides[1][:, at.to(a.device)] for at in places]
        self._products = _added(
            self._products, [x.to(sum_device(x), torch.float64) for x in products]
        )
        self._count += len(a)

    def matrices(self) -> dict[tuple[Slot, ...], torch.Tensor]:
        """For the slots of every piece, correlations of shape `(positions, positions)`.

        Units that are constant correlate with nothing.
        """
        found: dict[tuple[Slot, ...], torch.Tensor] = {}
        if not self._count:
            return found
        means = [total / self._count for total in self._sums]
        squares = [total / self._count for total in self._squares]
        deviations = []
        for mean, square, shift in zip(means, squares, self._shift, strict=True):
            variance = square - mean.square()
            level = square + shift.to(square).square()
            deviations.append(torch.where(variance > _CONSTANT * level, variance, torch.inf).sqrt())
        for piece, product in zip(self.group.pieces, self._products, strict=True):
            at = torch.from_numpy(piece.positions.ravel()).to(product.device)
            covariance = product / self._count - torch.outer(means[0][at], means[1][at])
            matrix = covariance / torch.outer(deviations[0][at], deviations[1][at])
            found[piece.slots] = found[piece.slots] + matrix if piece.slots in found else matrix
        return found


@dataclass(frozen=True)
class Assembled:
    """A matching problem whose objective is the sum of correlations of paired units.

    Args:
        problem: with a tensor of correlations for each kind of piece, and the unit matrix to be
            permuted: their inner product is the sum of the entries that a permutation picks.
        found: names of the classes that have correlations.
    """

    problem: WeightProblem
    found: frozenset[str]


def assemble(
    classes: tuple[PermutationClass, ...],
    free: Sequence[str],
    correlations: Sequence[Correlation],
) -> Assembled:
    """Sum the correlations of all axes that hold the same classes.

    Args:
        classes: the permutation classes.
        free: names of those that may move.
        correlations: of all axes.
    """
    total: dict[tuple[Slot, ...], torch.Tensor] = {}
    for correlation in correlations:
        for slots, matrix in correlation.matrices().items():
            total[slots] = total[slots] + matrix.to(total[slots]) if slots in total else matrix
    return of_sums(classes, free, total)


def of_sums(
    classes: tuple[PermutationClass, ...],
    free: Sequence[str],
    total: Mapping[tuple[Slot, ...], torch.Tensor],
) -> Assembled:
    """The same of sums of correlations.

    Args:
        classes: the permutation classes.
        free: names of those that may move.
        total: for the slots of every kind of piece, of shape `(positions, positions)`.
    """
    state_a, state_b, layout = _as_tensors(total)
    found = {s.class_name for slots in total for s in slots if s.class_name is not None}
    problem = WeightProblem(
        classes, layout, state_a, state_b, list(layout), [name for name in free if name in found]
    )
    return Assembled(problem, frozenset(found))


def _as_tensors(
    total: Mapping[tuple[Slot, ...], torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Layout]:
    state_a, state_b, layout = {}, {}, {}
    for k, (slots, matrix) in enumerate(total.items()):
        name = f"correlations {k}"
        shape = tuple(slot.size for slot in slots)
        piece = Piece(slots, np.arange(len(matrix), dtype=np.int64).reshape(shape))
        state_a[name] = matrix
        state_b[name] = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        layout[name] = (AxisGroup((0,), (piece,)),)
    return state_a, state_b, layout


def _added(total: list[torch.Tensor], news: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x + y for x, y in zip(total, news, strict=True)] if total else news


def sum_device(tensor: torch.Tensor) -> torch.device:
    """The device on which a tensor can be summed in float64.

    Args:
        tensor: what is summed.
    """
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device
