"""Numbers in another dtype, with a warning where they do not fit."""

from __future__ import annotations

import warnings

import torch

from fxrebasin.errors import FxRebasinWarning


def rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in another dtype; the tensor itself if it is of that dtype.

    Warns of finite numbers that are infinite afterwards, or NaN where a dtype has no infinities.
    They are no error: masks of -1e9 or of the least number of float32 work as infinities do.

    Args:
        name: what the warning calls the tensor.
        tensor: of any shape and dtype.
        dtype: of the result.

    Example:
        >>> rounded("weight", torch.tensor([0.5, 2.0], dtype=torch.float64), torch.float16)
        tensor([0.5000, 2.0000], dtype=torch.float16)
    """
    made = tensor.to(dtype)
    if tensor.is_floating_point() and _reach(dtype) < _reach(tensor.dtype):
        lost = int((~_finite(made) & _finite(tensor)).sum())
        if lost:
            kind = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"{name}: {lost} of {tensor.numel()} numbers are beyond {kind}, whose largest is "
                f"{_reach(dtype):.3g}; they are stored as infinities or NaN",
                category=FxRebasinWarning,
                stacklevel=2,
            )
    return made


def _reach(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max if dtype.is_floating_point else 0.0


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    few_bits = tensor.dtype.itemsize == 1  # these have no such questions
    return torch.isfinite(tensor.to(torch.float32) if few_bits else tensor)
