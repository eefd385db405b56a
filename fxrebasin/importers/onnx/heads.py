"""Attention, as the operators of several domains compute it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_heads(value: Tensor, count: int) -> Tensor:
    """`[batch, steps, heads * size]` as `[batch, heads, steps, size]`."""
    return value.reshape(*value.shape[:2], count, value.shape[2] // count).transpose(1, 2)


def merged_heads(value: Tensor) -> Tensor:
    """The way back."""
    batch, heads, steps, size = value.shape
    return value.transpose(1, 2).reshape(batch, steps, heads * size)


def repeated_heads(value: Tensor, count: int) -> Tensor:
    """Each head as often as is needed to have `count` of them, one after the other."""
    batch, heads, steps, size = value.shape
    if heads == count:
        return value
    wide = value.unsqueeze(2).expand(batch, heads, count // heads, steps, size)
    return wide.reshape(batch, count, steps, size)


def scores_of(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """Products of queries and keys, both scaled by the root of the scale."""
    factor = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    return (query * factor) @ (key * factor).transpose(-1, -2)


def capped(scores: Tensor, bound: float) -> Tensor:
    """Softly bounded, if there is a bound."""
    return bound * torch.tanh(scores / bound) if bound else scores


def shares(scores: Tensor, bias: Tensor | None) -> Tensor:
    """The softmax of scores with a bias; zero for a query that may look nowhere."""
    if bias is None:
        return torch.softmax(scores, -1)
    found = torch.softmax(scores + bias, -1)
    nowhere = torch.isneginf(bias).all(-1, keepdim=True)
    return torch.where(nowhere, torch.zeros_like(found), found)


def hiding(allowed: Tensor, dtype: torch.dtype, far: float = -math.inf) -> Tensor:
    """What is added to scores so that only what is allowed counts."""
    none = torch.zeros(allowed.shape, dtype=dtype)
    return torch.where(allowed, none, torch.full_like(none, far))


def rotated(value: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """Pairs of the first dimensions of each head turned by angles.

    Args:
        value: `[batch, heads, steps, head size]`.
        cos: of the angles, broadcast to `[batch, heads, steps, size / 2]`.
        sin: of the angles.
        interleaved: whether pairs are neighbours, or one half goes with the other.
        size: how many dimensions are turned.
    """
    turned, rest = value[..., :size], value[..., size:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        found = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        found = torch.cat([real, imaginary], -1)
    return torch.cat([found, rest], -1) if rest.shape[-1] else found
