"""Convolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import UnsupportedError, operator
from fxrebasin.importers.onnx.windows import CONVOLUTIONS, halves, windows

_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@operator("Conv")
def convolution(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Over one to three axes."""
    sizes = tuple(weight.shape[2:])
    where = windows(value, sizes, strides, dilations, pads, auto_pad)
    padding: tuple[int, ...] = where.before
    if not where.even or min(where.before) < 0:
        value, padding = where.padded(value), (0,) * len(sizes)
    convolve = CONVOLUTIONS[len(sizes) - 1]
    found: Tensor = convolve(value, weight, bias, where.strides, padding, where.dilations, group)
    return found


@operator("ConvTranspose")
def transposed_convolution(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    auto_pad: str = "NOTSET",
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
) -> Tensor:
    """The whole result first; then it is cut to size, or made larger, and the bias is added."""
    n = weight.ndim - 2
    if not 1 <= n <= 3:
        raise UnsupportedError(f"a transposed convolution over {n} axes")
    stride, dilation = strides or [1] * n, dilations or [1] * n
    convolve = _TRANSPOSED[n - 1]
    found: Tensor = convolve(value, weight, None, stride, 0, 0, group, dilation)
    more = output_padding or [0] * n
    wanted = output_shape[-n:] if output_shape else None
    if auto_pad.startswith("SAME") and wanted is None:
        wanted = [size * step for size, step in zip(value.shape[2:], stride, strict=True)]
    if wanted is None:
        cut = list(pads or [0] * (2 * n)) if auto_pad != "VALID" else [0] * (2 * n)
    else:
        sizes = [found.shape[2 + i] + more[i] for i in range(n)]
        totals = [size - target for size, target in zip(sizes, wanted, strict=True)]
        first, last = halves(totals, upper=auto_pad == "SAME_UPPER")
        cut = [*first, *last]
    flat = [w for i in reversed(range(n)) for w in (-cut[i], more[i] - cut[n + i])]
    found = F.pad(found, flat) if any(flat) else found
    return found if bias is None else found + bias.reshape(-1, *[1] * n)


@operator("CausalConvWithState")
def causal_convolution(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Each channel with the steps before, some of which come from an earlier call."""
    channels, _, size = weight.shape
    before = value.new_zeros(*value.shape[:2], size - 1) if past is None else past
    longer = torch.cat([before, value], -1)
    found = F.conv1d(longer, weight, bias, groups=channels)
    found = found if activation == "none" else F.silu(found)
    return found, longer.narrow(-1, longer.shape[-1] - (size - 1), size - 1)


@operator("DeformConv")
def deformed_convolution(
    value: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    group: int = 1,
    offset_group: int = 1,
    kernel_shape: list[int] | None = None,
) -> Tensor:
    """Samples at places that are moved by offsets, as columns of a product of matrices."""
    kernel = tuple(weight.shape[2:])
    if len(kernel) != 2:
        raise UnsupportedError(f"a deformed convolution over {len(kernel)} axes")
    where = windows(value, kernel, strides, dilations, pads, "NOTSET")
    n, channels, height, width = value.shape
    taps = math.prod(kernel)
    rows, columns = offset.shape[-2:]
    moved = offset.reshape(n, offset_group, taps, 2, rows, columns)
    steps = [
        torch.arange(count) * where.strides[i] - where.before[i]
        for i, count in enumerate((rows, columns))
    ]
    inside = [torch.arange(size) * where.dilations[i] for i, size in enumerate(kernel)]
    y0 = steps[0].reshape(1, -1, 1) + inside[0].repeat_interleave(kernel[1]).reshape(-1, 1, 1)
    x0 = steps[1].reshape(1, 1, -1) + inside[1].repeat(kernel[0]).reshape(-1, 1, 1)
    y, x = moved[:, :, :, 0] + y0, moved[:, :, :, 1] + x0
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    grid = grid.reshape(n * offset_group, taps * rows, columns, 2).to(value.dtype)
    parts = value.reshape(n * offset_group, channels // offset_group, height, width)
    taken = F.grid_sample(parts, grid, align_corners=False)
    taken = taken.reshape(n, offset_group, channels // offset_group, taps, rows, columns)
    if mask is not None:
        taken = taken * mask.reshape(n, offset_group, 1, taps, rows, columns)
    taken = taken.reshape(n, group, channels // group, taps, rows, columns)
    kernels = weight.reshape(group, weight.shape[0] // group, channels // group, taps)
    found = torch.einsum("ngctrk,goct->ngork", taken, kernels)
    found = found.reshape(n, weight.shape[0], rows, columns)
    return found if bias is None else found + bias.reshape(-1, 1, 1)
