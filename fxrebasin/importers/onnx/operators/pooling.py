"""Pools."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import Site, operator, operators, whole
from fxrebasin.importers.onnx.windows import CONVOLUTIONS, Windows, windows

_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _behind(value: Tensor) -> list[int]:
    return list(range(2, value.ndim))


operators(
    {
        "GlobalAveragePool": lambda x: x.mean(_behind(x), True),
        "GlobalMaxPool": lambda x: x.amax(_behind(x), True),
        "GlobalLpPool": lambda x, *, p=2: (x.abs() ** p).sum(_behind(x), True) ** (1 / p),
    }
)


def _extra(value: Tensor, where: Windows, ceil: bool) -> tuple[int, ...]:
    """What the last window reaches beyond the padding."""
    found = []
    for axis, size in enumerate(value.shape[2:]):
        count = where.count(axis, size, ceil)
        needed = (count - 1) * where.strides[axis] + where.reach(axis)
        found.append(needed - size - where.before[axis] - where.behind[axis])
    return tuple(found)


def _plain(where: Windows) -> bool:
    """Whether torch takes the padding as it is."""
    pairs = zip(where.before, where.sizes, strict=True)
    return where.even and all(0 <= 2 * width <= size for width, size in pairs)


@operator("MaxPool")
def max_pool(
    value: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    storage_order: int = 0,
    site: Site,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of each window, and where it is among all elements."""
    dtype = value.dtype
    value = value if value.is_floating_point() else value.double()
    where = windows(value, kernel_shape, strides, dilations, pads, auto_pad)
    pool = _MAX_POOLS[len(kernel_shape) - 1]
    padding: tuple[int, ...] = where.before
    if ceil_mode or not _plain(where):
        padding = (0,) * len(kernel_shape)
        wide = where.padded(value, -math.inf, _extra(value, where, bool(ceil_mode)))
    else:
        wide = value
    found = pool(wide, where.sizes, where.strides, padding, where.dilations).to(dtype)
    if site.outputs < 2:
        return found
    _, places = pool(
        wide, where.sizes, where.strides, padding, where.dilations, return_indices=True
    )
    moved = wide is not value
    return found, _among_all(places, value, wide.shape[2:], where, moved, bool(storage_order))


def _among_all(
    places: Tensor,
    value: Tensor,
    shape: torch.Size,
    where: Windows,
    moved: bool,
    columns_first: bool,
) -> Tensor:
    """Places in one (padded) channel as places among all elements of the input."""
    parts: list[Tensor] = []
    for axis in reversed(range(len(shape))):
        parts.insert(0, places % shape[axis] - (where.before[axis] if moved else 0))
        places = places // shape[axis]
    sizes = value.shape[2:]
    order = list(range(len(sizes)))
    found = torch.zeros_like(places)
    for axis in order[::-1] if columns_first else order:
        found = found * sizes[axis] + parts[axis]
    n, channels = value.shape[:2]
    first = torch.arange(n * channels).reshape(n, channels, *[1] * len(sizes))
    return found + first * math.prod(sizes)


def _sums(value: Tensor, where: Windows) -> Tensor:
    """The sums of windows without padding."""
    n = len(where.sizes)
    if all(step == 1 for step in where.dilations):
        pooled: Tensor = _AVERAGES[n - 1](value, where.sizes, where.strides)
        return pooled * math.prod(where.sizes)
    channels = value.shape[1]
    ones = value.new_ones(channels, 1, *where.sizes)
    found: Tensor = CONVOLUTIONS[n - 1](
        value, ones, None, where.strides, 0, where.dilations, channels
    )
    return found


@operator("AveragePool")
def average_pool(
    value: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    count_include_pad: int = 0,
) -> Tensor:
    """Means of windows, over what is in them, with or without the padding."""
    where = windows(value, kernel_shape, strides, dilations, pads, auto_pad)
    n = len(kernel_shape)
    if not ceil_mode and _plain(where) and all(step == 1 for step in where.dilations):
        average: Tensor = _AVERAGES[n - 1](
            value, where.sizes, where.strides, where.before, False, bool(count_include_pad)
        )
        return average
    extra = _extra(value, where, bool(ceil_mode))
    counted = torch.ones(1, 1, *value.shape[2:], dtype=value.dtype)
    counted = where.padded(counted, 1.0 if count_include_pad else 0.0)
    beyond = [w for more in reversed(extra) for w in (0, more)]
    sums = _sums(where.padded(value, extra=extra), where)
    return sums / _sums(F.pad(counted, beyond), where)


@operator("LpPool")
def lp_pool(
    value: Tensor,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
    dilations: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    p: int = 2,
) -> Tensor:
    """Norms of windows."""
    where = windows(value, kernel_shape, strides, dilations, pads, auto_pad)
    extra = _extra(value, where, bool(ceil_mode))
    return _sums(where.padded(value.abs() ** p, extra=extra), where) ** (1 / p)


@operator("MaxUnpool", reads=(2,))
def max_unpool(
    value: Tensor,
    places: Tensor,
    wanted: Tensor | None = None,
    *,
    kernel_shape: list[int],
    strides: list[int] | None = None,
    pads: list[int] | None = None,
) -> Tensor:
    """Each element at its place, zero elsewhere; more room, if it is wanted, is at the ends."""
    n = len(kernel_shape)
    stride, width = strides or [1] * n, pads or [0] * 2 * n
    sizes = [
        (value.shape[2 + i] - 1) * stride[i] + kernel_shape[i] - width[i] - width[n + i]
        for i in range(n)
    ]
    count = value.shape[0] * value.shape[1] * math.prod(sizes)
    flat = value.new_zeros(count).scatter(0, places.reshape(-1), value.reshape(-1))
    found = flat.reshape(*value.shape[:2], *sizes)
    if wanted is None:
        return found
    more = [whole(item) - size for item, size in zip(wanted, found.shape, strict=True)]
    return F.pad(found, [width for extra in reversed(more) for width in (0, extra)])
