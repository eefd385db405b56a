"""Normalisations."""

from __future__ import annotations

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.registry import Site, UnsupportedError, operator
from fxrebasin.running.numberless import has_no_data

_SCALE_PER_CHANNEL = 21
"""Since this opset GroupNormalization has a scale for each channel, before for each group."""


@operator("BatchNormalization")
def batch_normalization(
    value: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
    site: Site,
) -> Tensor:
    """With running statistics."""
    if training_mode or site.outputs > 1:
        raise UnsupportedError("BatchNormalization in training mode")
    if not spatial:
        raise UnsupportedError("BatchNormalization with statistics of each element")
    wide = torch.promote_types(value.dtype, mean.dtype)
    x, m, v, g, b = (item.to(wide) for item in (value, mean, variance, scale, bias))
    found = F.batch_norm(x, m, v, g, b, False, 0.0, epsilon)
    return found.to(value.dtype)


@operator("InstanceNormalization")
def instance_normalization(
    value: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """Over all axes behind the first two, as groups of one channel each.

    torch's own lays samples and channels on one axis, on which a group of channels, written as one
    that is normalised alone, takes more room than the analysis has.
    """
    return F.group_norm(value, value.shape[1], scale, bias, epsilon)


@operator("GroupNormalization")
def group_normalization(
    value: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    site: Site,
) -> Tensor:
    """Over groups of channels.

    In float64, and where there are no data, a variance is the mean of squared deviations. In short
    types it is what the standard spells out and onnxruntime runs: the mean of squares less the
    square of the mean, most of which cancels in groups of few elements. So what float32 leaves open
    is measured on what the file says.
    """
    if site.opset < _SCALE_PER_CHANNEL:
        size = value.shape[1] // num_groups
        scale, bias = scale.repeat_interleave(size), bias.repeat_interleave(size)
    if value.dtype is torch.float64 or has_no_data(value):
        return F.group_norm(value, num_groups, scale, bias, epsilon)
    wide = value.to(dtype_of(stash_type)) if site.opset >= _SCALE_PER_CHANNEL else value
    groups = wide.reshape(value.shape[0], num_groups, -1)
    mean = groups.mean(-1, True)
    variance = (groups * groups).mean(-1, True) - mean * mean
    found = (groups - mean) / (variance + epsilon).sqrt()
    shape = [1, -1, *[1] * (value.ndim - 2)]
    return found.reshape(value.shape).to(value.dtype) * scale.view(shape) + bias.view(shape)


@operator("LayerNormalization")
def layer_normalization(
    value: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    site: Site,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Over an axis and all behind it; also mean and inverse deviation, if they are asked for."""
    axis %= value.ndim
    shape = tuple(value.shape[axis:])
    whole = tuple(scale.shape) == shape and (bias is None or tuple(bias.shape) == shape)
    if whole:
        found = F.layer_norm(value, shape, scale, bias, epsilon)
    else:
        found = F.layer_norm(value, shape, None, None, epsilon) * scale
        found = found if bias is None else found + bias
    if site.outputs == 1:
        return found
    wide = value.to(dtype_of(stash_type))
    axes = list(range(axis, value.ndim))
    mean = wide.mean(axes, True)
    variance = ((wide - mean) ** 2).mean(axes, True)
    return found, mean, torch.rsqrt(variance + epsilon)


def root_mean_square(value: Tensor, scale: Tensor, epsilon: float, axis: int = -1) -> Tensor:
    """A value divided by the root of the mean of its squares, in float32 at least, and scaled.

    Args:
        value: any shape.
        scale: broadcast to it.
        epsilon: added to the mean.
        axis: the first of those that the mean is over.
    """
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    axes = list(range(axis % value.ndim, value.ndim))
    found = wide * torch.rsqrt((wide * wide).mean(axes, True) + epsilon)
    return found.to(value.dtype) * scale


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(
    value: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    site: Site,
) -> Tensor:
    """Over an axis and all behind it; the second name is onnxruntime's in the standard's domain."""
    if site.outputs > 1:
        raise UnsupportedError("SimplifiedLayerNormalization with its inverse deviation")
    return root_mean_square(value, scale, epsilon, axis)


@operator("LpNormalization")
def lp_normalization(value: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zero where the norm is."""
    size = value.abs().sum(axis, True) if p == 1 else (value * value).sum(axis, True).sqrt()
    return torch.where(size == 0, torch.zeros_like(value), value / size)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(value: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """Without a scale."""
    over = [0, 2, 3] if axes is None else axes
    centred = value - value.mean(over, True)
    return centred / ((centred * centred).mean(over, True).sqrt() + 1e-9)


@operator("LRN")
def local_response_normalization(
    value: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Over neighbouring channels, one more behind than in front where their number is even."""
    before, behind = (size - 1) // 2, math.ceil((size - 1) / 2)
    squares = F.pad(value * value, [0, 0] * (value.ndim - 2) + [before, behind])
    channels = value.shape[1]
    sums = reduce(torch.add, (squares.narrow(1, at, channels) for at in range(size)))
    return value / (bias + alpha / size * sums) ** beta
