"""Inputs like given ones: of the same shapes and kinds, with other values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

_FEW = 2  # integer tensors with at most this many values are masks or flags, and are kept


def redrawn(tree: Any, seed: int) -> Any:
    """The tensors in a tree with other values, drawn from a generator with a seed.

    Floating-point tensors: independent normal values with the mean and standard deviation of the
    given ones, clamped to their range, so that they stay where a model's function is defined; a
    constant tensor gives unclamped normal values around the constant. Integer tensors of more than
    two values: the same values in another order. Integer tensors of at most two values, boolean
    tensors and tensors with non-finite values (masks): as they are.

    Example:
        >>> sorted(redrawn([torch.tensor([3, 1, 2])], seed=0)[0].tolist())
        [1, 2, 3]
    """
    generator = torch.Generator().manual_seed(seed)

    def redraw(value: Any) -> Any:
        return _redraw(value, generator) if isinstance(value, torch.Tensor) else value

    return tree_map(redraw, tree)


def _redraw(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.is_complex():
        parts = torch.view_as_real(tensor.detach().resolve_conj())
        return torch.view_as_complex(_redraw(parts, generator).contiguous())
    if tensor.is_floating_point():
        return _redraw_real(tensor.detach(), generator)
    if tensor.dtype == torch.bool or tensor.unique().numel() <= _FEW:
        return tensor
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)


def _redraw_real(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    values = tensor.double()
    if not values.numel() or not torch.isfinite(values).all():
        return tensor
    low, high, mean = values.min(), values.max(), values.mean()
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64).to(tensor.device)
    if low == high:
        return (mean + noise * mean.abs().clamp(min=1)).to(tensor.dtype)
    return (mean + noise * values.std()).clamp(low, high).to(tensor.dtype)
