"""The best element of the group of one class, given how much each pair of units agrees.

All of it is for balanced states, where what may be any invertible matrix is orthogonal. An
agreement is the sum of products of the rows of two models, of shape (..., units, units): the
reference's units first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.solvers.assignment import assign_batch


@dataclass(frozen=True, eq=False)
class Agreement:
    """How much units of two models agree.

    Attributes:
        even: sums over places where units keep their sign, or where matrices act.
        odd: sums over places where units may change their sign.
    """

    even: Tensor
    odd: Tensor

    def of_copies(self) -> Agreement:
        """Each copy of the reference with the same copy of the model, of those that all have."""
        return Agreement(*(item.diagonal().movedim(-1, 0) for item in (self.even, self.odd)))

    def of_pairs(self, pairs: Sequence[int]) -> Agreement:
        """Each copy of the reference with another one of the model.

        Args:
            pairs: the number of the model's copy for each of the reference.
        """
        first, second = torch.arange(len(pairs)), torch.tensor(pairs)
        return Agreement(self.even[first, second], self.odd[first, second])


@dataclass(frozen=True, eq=False)
class Best:
    """What was found.

    Attributes:
        gain: what the model agrees with the reference after it, of shape (...).
        order: where units come from, int64 of shape (..., units); None if they stay.
        element: of the group, as `fxrebasin.elements` has them; None if nothing acts.
    """

    gain: Tensor
    order: Tensor | None
    element: Tensor | None


def best(own: ClassKind, agreement: Agreement) -> Best:
    """The best element for each agreement.

    Args:
        own: the group of the class.
        agreement: of shape (..., units, units).
    """
    if own.kind is GroupKind.COMPLEX_PAIRS:
        return _turned(agreement.even, own.partner)
    if own.kind.has_matrices:
        return _rotated(agreement.even, own.kind is GroupKind.ORTHOGONAL_FIXING_ONES)
    return _assigned(agreement, own.kind in (GroupKind.SIGNED, GroupKind.MONOMIAL))


def _assigned(agreement: Agreement, signed: bool) -> Best:
    gains = agreement.even + (agreement.odd.abs() if signed else agreement.odd)
    shape = gains.shape
    flat = gains.reshape(-1, *shape[-2:])
    found = torch.from_numpy(np.asarray(assign_batch(flat.numpy()), np.int64))
    order = found.reshape(shape[:-1])
    gain = gains.gather(-1, order[..., None]).sum((-2, -1))
    if not signed:
        return Best(gain, order, None)
    odd = agreement.odd.gather(-1, order[..., None])[..., 0]
    return Best(gain, order, torch.where(odd < 0, -1.0, 1.0).to(torch.float64))


def _rotated(agreement: Tensor, fixes_ones: bool) -> Best:
    """Orthogonal Procrustes (Schönemann 1966); with ones fixed, on what is orthogonal to them."""
    size = agreement.shape[-1]
    if fixes_ones:
        centre = torch.eye(size, dtype=agreement.dtype) - 1 / size
        agreement = centre @ agreement @ centre
        ones = torch.full_like(agreement, 1 / size)
        agreement = agreement + (1 + torch.linalg.matrix_norm(agreement)[..., None, None]) * ones
    left, values, right = torch.linalg.svd(agreement)
    return Best(values.sum(-1), None, left @ right)


def _turned(agreement: Tensor, partner: Sequence[int]) -> Best:
    """The best rotation of each pair: the polar form of a complex number."""
    length, found = pairs_of(agreement, partner)
    return Best(length.sum(-1) / 2, None, found)


def pairs_of(agreement: Tensor, partner: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The polar form of what pairs of units agree, as that of a complex number.

    Args:
        agreement: of shape (..., units, units).
        partner: the other unit of each pair.

    Returns:
        How much it is, by the unit, and the rotation.
    """
    size = len(partner)
    units, other = torch.arange(size), torch.tensor(partner)
    straight = agreement[..., units, units] + agreement[..., other, other]
    crossed = agreement[..., units, other] - agreement[..., other, units]
    length = torch.hypot(straight, crossed)
    known = length > 0
    safe = torch.where(known, length, 1.0)
    found = torch.zeros_like(agreement)
    found[..., units, units] = torch.where(known, straight / safe, 1.0)
    found[..., units, other] = torch.where(known, crossed / safe, 0.0)
    return length, found
