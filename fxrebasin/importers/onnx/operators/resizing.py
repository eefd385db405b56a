"""Resizing, and sampling at places that are given.

Along each axis a result is a sum of elements with weights that depend on sizes alone, so that any
mode is a product with a table of weights, or, where one element counts, a choice of elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.registry import (
    Site,
    UnsupportedError,
    fractions,
    numbers,
    operator,
)

_WITHOUT_MODES = 10
"""Up to this opset coordinates are simply divided by the scale, and rounded down."""


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Args:
        size: before.
        result: after.
        scale: their ratio, as the node has it.
        start: of the region that is looked at, as a share of the axis.
        end: of that region.
    """

    size: int
    result: int
    scale: float
    start: float = 0.0
    end: float = 1.0


_Coordinates: TypeAlias = Callable[[Tensor, _Axis], Tensor]


def _half_pixel(x: Tensor, axis: _Axis) -> Tensor:
    return (x + 0.5) / axis.scale - 0.5


def _half_pixel_symmetric(x: Tensor, axis: _Axis) -> Tensor:
    adjustment = axis.result / (axis.scale * axis.size)
    return axis.size / 2 * (1 - adjustment) + _half_pixel(x, axis)


def _pytorch_half_pixel(x: Tensor, axis: _Axis) -> Tensor:
    return _half_pixel(x, axis) if axis.result > 1 else x * 0


def _align_corners(x: Tensor, axis: _Axis) -> Tensor:
    return x * (axis.size - 1) / (axis.result - 1) if axis.result > 1 else x * 0


def _crop_and_resize(x: Tensor, axis: _Axis) -> Tensor:
    last = axis.size - 1
    if axis.result > 1:
        return axis.start * last + x * (axis.end - axis.start) * last / (axis.result - 1)
    return x * 0 + 0.5 * (axis.start + axis.end) * last


_COORDINATES: Mapping[str, _Coordinates] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda x, axis: x / axis.scale,
    "tf_half_pixel_for_nn": lambda x, axis: (x + 0.5) / axis.scale,
    "tf_crop_and_resize": _crop_and_resize,
}

_NEAREST: Mapping[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _triangle(distance: Tensor, a: float) -> Tensor:
    return torch.clamp(1 - distance, 0, 1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    x = distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_KERNELS = {"linear": (_triangle, 1), "cubic": (_cubic, 2)}


def _weights(
    places: Tensor, axis: _Axis, mode: str, a: float, exclude: bool, antialias: bool
) -> Tensor:
    """How much each element counts for each of the result: `[result, size]`, in float64."""
    kernel, support = _KERNELS[mode]
    narrow = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil(support / narrow) + 1
    steps = torch.arange(-reach, reach + 1)
    taps = torch.floor(places).long().unsqueeze(1) + steps
    found = kernel((taps - places.unsqueeze(1)).abs() * narrow, a)
    if exclude:
        found = torch.where((taps >= 0) & (taps < axis.size), found, torch.zeros_like(found))
    found = found / found.sum(1, keepdim=True)
    table = torch.zeros(axis.result, axis.size, dtype=torch.float64)
    return table.scatter_add(1, taps.clamp(0, axis.size - 1), found)


@dataclass(frozen=True)
class _Way:
    """How values between places are found; see the operator's attributes."""

    mode: str
    coordinates: str
    nearest: str
    a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def _resized(value: Tensor, at: int, axis: _Axis, way: _Way) -> Tensor:
    if way.coordinates not in _COORDINATES or way.mode not in ("nearest", *_KERNELS):
        raise UnsupportedError(f"resizing with {way.mode!r} and {way.coordinates!r}")
    steps = torch.arange(axis.result, dtype=torch.float64)
    places = _COORDINATES[way.coordinates](steps, axis)
    if way.mode == "nearest":
        chosen = _NEAREST[way.nearest](places).long().clamp(0, axis.size - 1)
        found = value.index_select(at, chosen)
    else:
        table = _weights(places, axis, way.mode, way.a, way.exclude_outside, way.antialias)
        wide = value if value.is_floating_point() else value.double()
        product = torch.matmul(wide.movedim(at, -1), table.to(wide.dtype).t()).movedim(-1, at)
        found = product.to(value.dtype)
    if way.coordinates != "tf_crop_and_resize":
        return found
    outside = (places < 0) | (places > axis.size - 1)
    shape = [-1 if axis_ == at else 1 for axis_ in range(value.ndim)]
    return found.masked_fill(outside.reshape(shape), way.extrapolation)


@operator("Resize", reads=(1, 2, 3))
def resize(
    value: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    antialias: int = 0,
    extrapolation_value: float = 0.0,
    axes: list[int] | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    site: Site,
) -> Tensor:
    """By scales, or to sizes."""
    if site.opset <= _WITHOUT_MODES:
        return upsample(value, roi, mode=mode)
    way = _Way(
        *(mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a),
        *(bool(exclude_outside), bool(antialias), extrapolation_value),
    )
    along = list(range(value.ndim)) if axes is None else [axis % value.ndim for axis in axes]
    before = [value.shape[axis] for axis in along]
    if sizes is not None and sizes.numel():
        factors, results = _fitted(before, numbers(sizes), keep_aspect_ratio_policy)
    else:
        factors = fractions(scales)
        results = [math.floor(size * scale) for size, scale in zip(before, factors, strict=True)]
    cropped = way.coordinates == "tf_crop_and_resize"
    region = fractions(roi) if cropped else []
    region = region or [0.0] * len(along) + [1.0] * len(along)
    for k, at in enumerate(along):
        axis = _Axis(before[k], results[k], factors[k], region[k], region[len(along) + k])
        if cropped or axis.size != axis.result or axis.scale != 1:
            value = _resized(value, at, axis, way)
    return value


def _fitted(before: list[int], wanted: list[int], policy: str) -> tuple[list[float], list[int]]:
    """Scales and sizes; either the sizes that are wanted, or a shape that is kept."""
    ratios = [target / size for size, target in zip(before, wanted, strict=True)]
    if policy == "stretch":
        return ratios, wanted
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [ratio] * len(before), [math.floor(ratio * size + 0.5) for size in before]


@operator("Upsample", reads=(1,))
def upsample(
    value: Tensor,
    factors: Tensor | None = None,
    *,
    mode: str = "nearest",
    scales: list[float] | None = None,
) -> Tensor:
    """As Resize was up to opset 10."""
    mode = "linear" if mode == "bilinear" else mode
    way = _Way(mode, "asymmetric", "floor", 0.0, False, False, 0.0)
    for at, scale in enumerate(fractions(scales if factors is None else factors)):
        size = value.shape[at]
        if scale != 1:
            value = _resized(value, at, _Axis(size, math.floor(size * scale), scale), way)
    return value


_SAMPLING = {
    **{"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"},
    **{"cubic": "bicubic", "bicubic": "bicubic"},
}


@operator("GridSample")
def grid_sample(
    value: Tensor,
    grid: Tensor,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
) -> Tensor:
    """At places of a grid."""
    if mode not in _SAMPLING or (value.ndim == 5 and _SAMPLING[mode] == "bicubic"):
        raise UnsupportedError(f"sampling with {mode!r} over {value.ndim - 2} axes")
    return F.grid_sample(value, grid, _SAMPLING[mode], padding_mode, bool(align_corners))


@operator("AffineGrid", reads=(1,))
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The places of an affine map."""
    return F.affine_grid(theta, numbers(size), bool(align_corners))


@operator("RoiAlign", reads=(1, 2))
def roi_align(
    value: Tensor,
    rois: Tensor,
    batches: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    coordinate_transformation_mode: str | None = None,
    site: Site,
) -> Tensor:
    """Means, or the largest, of samples in the cells of each region."""
    moved = "half_pixel" if site.opset >= 16 else "output_half_pixel"
    half = (coordinate_transformation_mode or moved) == "half_pixel"
    found = []
    for region, batch in zip(rois, batches, strict=True):
        x0, y0, x1, y1 = (float(item.item()) * spatial_scale - 0.5 * half for item in region)
        tall, wide = y1 - y0, x1 - x0
        if not half:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        rows = sampling_ratio or max(math.ceil(tall / output_height), 0)
        columns = sampling_ratio or max(math.ceil(wide / output_width), 0)
        y = _samples(value.shape[2], y0, tall / output_height, output_height, rows)
        x = _samples(value.shape[3], x0, wide / output_width, output_width, columns)
        image = value.index_select(0, batch.reshape(1)).squeeze(0)
        found.append(_mean(image, y, x) if mode == "avg" else _largest_part(image, y, x))
    shape = (0, value.shape[1], output_height, output_width)
    return torch.stack(found) if found else value.new_zeros(shape)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Samples along one axis, each between two elements.

    Args:
        size: of the axis.
        low: place of the first, `[cells, samples]`.
        high: place of the second.
        of_low: how much the first counts, in float64.
        of_high: how much the second counts.
    """

    size: int
    low: Tensor
    high: Tensor
    of_low: Tensor
    of_high: Tensor

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Places with their weights."""
        return (self.low, self.of_low), (self.high, self.of_high)

    def means(self) -> Tensor:
        """How much each element counts for the mean of each cell: `[cells, size]`."""
        found = torch.zeros(len(self.low), self.size, dtype=torch.float64)
        for places, weights in self.pairs():
            found = found.scatter_add(1, places, weights)
        return found / max(self.low.shape[1], 1)  # a region that is turned round has no samples


def _samples(size: int, start: float, step: float, cells: int, count: int) -> _Samples:
    inside = (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)
    places = start + step * (torch.arange(cells, dtype=torch.float64).unsqueeze(1) + inside)
    within = ((places >= -1) & (places <= size)).double()
    places = places.clamp(0, size - 1)
    low = places.floor()
    rest = places - low
    high = (low + 1).clamp(max=size - 1)
    return _Samples(size, low.long(), high.long(), (1 - rest) * within, rest * within)


def _mean(image: Tensor, y: _Samples, x: _Samples) -> Tensor:
    rows, columns = y.means().to(image.dtype), x.means().to(image.dtype)
    return torch.einsum("chw,ph,qw->cpq", image, rows, columns)


def _largest_part(image: Tensor, y: _Samples, x: _Samples) -> Tensor:
    """The largest of the four terms of any sample, as the standard has it."""
    terms = []
    for rows, of_rows in y.pairs():
        for columns, of_columns in x.pairs():
            taken = image[:, rows[:, None, :, None], columns[None, :, None, :]]
            weights = of_rows[:, None, :, None] * of_columns[None, :, None, :]
            terms.append((taken * weights.to(image.dtype)).amax((-1, -2)))
    return torch.stack(terms).amax(0)
