"""Losses, which files of training graphs hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import operator

_NONE = -100
"""A class that no target has, where none is to be ignored."""


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    value: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Tensor:
    """Of logarithms, for each place behind the classes."""
    ignored = _NONE if ignore_index is None else ignore_index
    flat = value.flatten(2) if value.ndim > 2 else value
    places = target.flatten(1).long() if value.ndim > 2 else target.long()
    found = F.nll_loss(flat, places, weight, reduction=reduction, ignore_index=ignored)
    return found.reshape(target.shape) if reduction == "none" else found


@operator("SoftmaxCrossEntropyLoss")
def cross_entropy(
    value: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Of scores; also their logarithms."""
    logarithms = torch.log_softmax(value, 1)
    loss = negative_log_likelihood(
        logarithms, target, weight, reduction=reduction, ignore_index=ignore_index
    )
    return loss, logarithms
