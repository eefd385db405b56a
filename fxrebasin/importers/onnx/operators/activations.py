"""Activation functions, and softmax with its kin."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import (
    Site,
    UnsupportedError,
    number,
    operator,
    operators,
)

_FLATTENING_UP_TO = 12

operators(
    {
        "Relu": torch.relu,
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "Softsign": lambda x: x / (1 + x.abs()),
        "HardSwish": lambda x: x * torch.clamp(x * (1 / 6) + 0.5, 0, 1),
        "Mish": lambda x: x * torch.tanh(F.softplus(x)),
        "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
        "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
        "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
        "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: torch.clamp(x * alpha + beta, 0, 1),
        "ThresholdedRelu": lambda x, *, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
        "Swish": lambda x, *, alpha=1.0: x * torch.sigmoid(x * alpha),
        "SwiGLU": lambda x, y, *, alpha=1.0: x * torch.sigmoid(x * alpha) * y,
        "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
        "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
    }
)


@operator("Selu")
def selu(
    value: Tensor,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Tensor:
    """With numbers of its own."""
    return gamma * F.elu(value, alpha)


@operator("Shrink")
def shrink(value: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Towards zero, and zero in between."""
    down = torch.where(value > lambd, value - bias, torch.zeros_like(value))
    return torch.where(value < -lambd, value + bias, down)


@operator("Dropout", reads=(1, 2))
def dropout(
    value: Tensor,
    rate: Tensor | None = None,
    training: Tensor | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Nothing is dropped where a file is used."""
    if training is not None and number(training) and (rate is None or number(rate)):
        raise UnsupportedError("Dropout in training mode draws random numbers")
    return value, torch.ones(value.shape, dtype=torch.bool, device=value.device)


def _along(
    function: Callable[[Tensor, int], Tensor], value: Tensor, axis: int | None, site: Site
) -> Tensor:
    """Along an axis; before opset 13, over that axis and all behind it."""
    if site.opset > _FLATTENING_UP_TO:
        return function(value, -1 if axis is None else axis)
    first = (1 if axis is None else axis) % max(value.ndim, 1)
    if first == value.ndim - 1:
        return function(value, -1)
    return function(value.flatten(first), -1).reshape(value.shape)


@operator("Softmax")
def softmax(value: Tensor, *, axis: int | None = None, site: Site) -> Tensor:
    """Shares of the sum of exponentials."""
    return _along(torch.softmax, value, axis, site)


@operator("LogSoftmax")
def log_softmax(value: Tensor, *, axis: int | None = None, site: Site) -> Tensor:
    """Their logarithms."""
    return _along(torch.log_softmax, value, axis, site)


@operator("Hardmax")
def hardmax(value: Tensor, *, axis: int | None = None, site: Site) -> Tensor:
    """One at the first of the largest, zero elsewhere."""

    def largest(values: Tensor, dim: int) -> Tensor:
        place = values.argmax(dim, keepdim=True)
        return torch.zeros_like(values).scatter(dim, place, 1)

    return _along(largest, value, axis, site)
