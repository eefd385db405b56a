"""What is expected of elements of a class, given how much each pair of units agrees.

If an element is the likelier the more it agrees (as the exponential of that), the expected one is a
matrix that goes from nothing, where all are alike, to the one that fits best. That of a permutation
has in each row and column the shares of the units (Sinkhorn's algorithm). That of a rotation has
the singular vectors of the agreement, and singular values from zero to one: those of a class of n
units are here those of a direction in n dimensions, whose mean length at concentration k is about
k / (n/2 + sqrt((n/2)² + k²)) (Amos 1974, Computation of modified Bessel functions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.passes.match.best_elements import Agreement, pairs_of

_ROUNDS = 4
"""Normalisations of rows and columns; further ones follow when the same units are looked at again,
from the factors that were found."""


@dataclass(frozen=True, eq=False)
class Expected:
    """What was found.

    Attributes:
        gain: the logarithm of how likely all elements are together, of shape (...).
        maps: of shape (..., 1 or 2, units, units): the last where units may change their sign.
        factors: of the columns, logarithms; what the next search for them begins with.
    """

    gain: Tensor
    maps: Tensor
    factors: Tensor | None = None


def expected(own: ClassKind, agreement: Agreement, factors: Tensor | None = None) -> Expected:
    """The expected element for each agreement.

    Args:
        own: the group of the class, between balanced states.
        agreement: of shape (..., units, units), in units of the variance of its noise.
        factors: found earlier for the same units.
    """
    if own.kind is GroupKind.COMPLEX_PAIRS:
        length, turn = pairs_of(agreement.even, own.partner)
        gain, size = _direction(length, 2)
        return Expected(gain.sum(-1) / 2, (turn * size[..., None])[..., None, :, :])
    if own.kind.has_matrices:
        return _rotation(agreement.even, own.kind is GroupKind.ORTHOGONAL_FIXING_ONES)
    return _order(agreement, own.kind in (GroupKind.SIGNED, GroupKind.MONOMIAL), factors)


def _rotation(agreement: Tensor, fixes_ones: bool) -> Expected:
    size = agreement.shape[-1]
    if fixes_ones:
        centre = torch.eye(size, dtype=agreement.dtype) - 1 / size
        agreement = centre @ agreement @ centre
    left, values, right = torch.linalg.svd(agreement)
    gain, length = _direction(values, size - fixes_ones)
    matrix = (left * length[..., None, :]) @ right
    matrix = matrix + 1 / size if fixes_ones else matrix
    return Expected(gain.sum(-1), matrix[..., None, :, :])


def _direction(concentration: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """The logarithm of the mean over all directions, and their expected length."""
    half = dimensions / 2
    root = (half**2 + concentration**2).sqrt()
    gain = root - half - half * ((half + root) / (2 * half)).log()
    return gain, concentration / (half + root)


def _order(agreement: Agreement, signed: bool, factors: Tensor | None) -> Expected:
    even, odd = agreement.even, agreement.odd
    gains = torch.logaddexp(even + odd, even - odd) if signed else even + odd
    if factors is None or factors.shape != gains[..., :1, :].shape:
        factors = torch.zeros_like(gains[..., :1, :])
    for _ in range(_ROUNDS):
        rows = -(gains + factors).logsumexp(-1, keepdim=True)
        factors = -(gains + rows).logsumexp(-2, keepdim=True)
    shares = (gains + rows + factors).exp()
    maps = (shares, shares * odd.tanh()) if signed else (shares,)
    return Expected((shares * gains).sum((-2, -1)), torch.stack(maps, -3), factors)
