"""Shapes: asking for them, changing them, moving elements about."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.registry import Site, number, numbers, operator, operators, whole

operators(
    {
        "Shape": lambda x, *, start=0, end=None: torch.tensor(
            x.shape[start:end], dtype=torch.int64
        ),
        "Size": lambda x: torch.tensor(x.numel(), dtype=torch.int64),
        "Concat": lambda *values, axis: torch.cat(values, axis),
    }
)


@operator("Tile", reads=(1,))
def tile(value: Tensor, repeats: Tensor) -> Tensor:
    """The whole, several times along each axis."""
    return value.repeat(numbers(repeats))


@operator("Reshape", reads=(1,))
def reshape(value: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """Zero keeps a size, unless it is allowed as one; -1 is what is left."""
    sizes = numbers(shape)
    if not allowzero:
        sizes = [value.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    if -1 in sizes:
        others = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = value.numel() // others if others else 0
    return value.reshape(sizes)


@operator("Flatten")
def flatten(value: Tensor, *, axis: int = 1) -> Tensor:
    """Into two axes."""
    first = axis + value.ndim if axis < 0 else axis
    rows = math.prod(value.shape[:first])
    return value.reshape(rows, math.prod(value.shape[first:]))


@operator("Transpose")
def transpose(value: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """The axes in another order, by default the reverse."""
    return value.permute(perm if perm is not None else list(range(value.ndim))[::-1])


@operator("Squeeze", reads=(1,))
def squeeze(
    value: Tensor, places: Tensor | None = None, *, axes: list[int] | None = None
) -> Tensor:
    """Without axes of size one; `axes` is an input since opset 13."""
    given = numbers(axes if places is None else places)
    if axes is None and places is None:
        given = [at for at, size in enumerate(value.shape) if size == 1]
    kept = {axis % value.ndim for axis in given}
    sizes = [size for at, size in enumerate(value.shape) if at not in kept]
    for axis in sorted(kept, reverse=True):
        value = value.squeeze(axis)
    return value.reshape(sizes) if value.ndim != len(sizes) else value


@operator("Unsqueeze", reads=(1,))
def unsqueeze(
    value: Tensor, places: Tensor | None = None, *, axes: list[int] | None = None
) -> Tensor:
    """With new axes of size one; `axes` is an input since opset 13."""
    given = numbers(axes if places is None else places)
    ndim = value.ndim + len(given)
    for axis in sorted(axis % ndim for axis in given):
        value = value.unsqueeze(axis)
    return value


@operator("Expand", reads=(1,))
def expand(value: Tensor, shape: Tensor) -> Tensor:
    """Both are broadcast to each other."""
    return value.expand(torch.broadcast_shapes(tuple(value.shape), tuple(numbers(shape))))


@operator("Split", reads=(1,))
def split(
    value: Tensor,
    parts: Tensor | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    site: Site,
) -> tuple[Tensor, ...]:
    """In parts of given sizes, or in equal ones, of which the last may be smaller."""
    sizes = numbers(split if parts is None else parts)
    if not sizes:
        count = num_outputs or site.outputs
        size = -(-value.shape[axis] // count)
        sizes = [size] * (count - 1)
        sizes.append(value.shape[axis] - sum(sizes))
    return tuple(torch.split(value, sizes, axis))


@operator("Slice", reads=(1, 2, 3, 4))
def take_slice(
    value: Tensor,
    first: Tensor | None = None,
    last: Tensor | None = None,
    along: Tensor | None = None,
    steps: Tensor | None = None,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Tensor:
    """As Python's slices; what they are made of are attributes before opset 10."""
    begin = numbers(starts if first is None else first)
    end = numbers(ends if last is None else last)
    where = numbers(axes if along is None else along) or list(range(len(begin)))
    step = numbers(steps) or [1] * len(begin)
    for start, stop, axis, by in zip(begin, end, where, step, strict=True):
        value = _sliced(value, axis % value.ndim, slice(start, stop, by))
    return value


def _sliced(value: Tensor, axis: int, part: slice) -> Tensor:
    size = value.shape[axis]
    places = range(*part.indices(size))
    if not len(places):
        return value.narrow(axis, 0, 0)
    if places.step < 0:
        value = value.flip(axis)
        places = range(size - 1 - places[0], size - places[-1], -places.step)
    whole_axes = (slice(None),) * axis
    found: Tensor = value[(*whole_axes, slice(places[0], places[-1] + 1, places.step))]
    return found


@operator("Pad", reads=(1, 2, 3))
def pad(
    padded: Tensor,
    widths: Tensor | None = None,
    filling: Tensor | None = None,
    along: Tensor | None = None,
    *,
    pads: list[int] | None = None,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """Before and behind each axis; negative widths cut off."""
    sizes = numbers(pads if widths is None else widths)
    ndim = padded.ndim
    axes = list(range(ndim)) if along is None else [axis % ndim for axis in numbers(along)]
    pairs = dict(zip(axes, zip(sizes, sizes[len(axes) :], strict=False), strict=True))
    if mode == "constant":
        flat = [w for axis in reversed(range(ndim)) for w in pairs.get(axis, (0, 0))]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(padded, flat, value=value if filling is None else number(filling))
    for axis, (before, behind) in pairs.items():
        if before or behind:
            places = _padded_places(padded.shape[axis], before, behind, mode)
            padded = padded.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return padded


def _padded_places(size: int, before: int, behind: int, mode: str) -> list[int]:
    """Where the elements of a padded axis come from."""
    places = range(-before, size + behind)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    period = max(2 * (size - 1), 1)
    return [min(place % period, period - place % period) if size > 1 else 0 for place in places]


@operator("ConstantOfShape", reads=(0,))
def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """One number throughout; zero in float32 by default."""
    fill = torch.zeros(1) if value is None else value
    return torch.full(numbers(shape), number(fill), dtype=fill.dtype)


@operator("Range", reads=(0, 1, 2))
def make_range(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """Up to a limit that is left out."""
    first, last, step = number(start), number(limit), number(delta)
    count = max(math.ceil((last - first) / step), 0)
    if start.is_floating_point():
        return start.reshape(()) + torch.arange(count, dtype=start.dtype) * step
    return torch.arange(count, dtype=start.dtype) * step + first


@operator("EyeLike")
def eye_like(like: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on a diagonal."""
    kind = like.dtype if dtype is None else dtype_of(dtype)
    rows, columns = like.shape
    places = torch.arange(columns) - torch.arange(rows).unsqueeze(1)
    return (places == k).to(kind)


@operator("Trilu", reads=(1,))
def triangle(value: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """The triangle above or below a diagonal."""
    offset = 0 if k is None else whole(k)
    return torch.triu(value, offset) if upper else torch.tril(value, offset)


@operator("DepthToSpace")
def depth_to_space(value: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels to blocks of pixels; the channels of a block come first, or last (CRD)."""
    if mode == "CRD":
        return F.pixel_shuffle(value, blocksize)
    n, c, h, w = value.shape
    r = blocksize
    apart = value.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(n, c // r**2, h * r, w * r)


@operator("SpaceToDepth")
def space_to_depth(value: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels to channels."""
    if mode == "CRD":
        return F.pixel_unshuffle(value, blocksize)
    n, c, h, w = value.shape
    r = blocksize
    apart = value.reshape(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4)
    return apart.reshape(n, c * r * r, h // r, w // r)


@operator("CenterCropPad", reads=(1,))
def center_crop_pad(value: Tensor, shape: Tensor, *, axes: list[int] | None = None) -> Tensor:
    """To given sizes, cut or filled on both sides."""
    places = range(value.ndim) if axes is None else [axis % value.ndim for axis in axes]
    for axis, size in zip(places, numbers(shape), strict=True):
        more = size - value.shape[axis]
        if more <= 0:
            value = value.narrow(axis, -more // 2, size)
        else:
            flat = [0] * (2 * (value.ndim - 1 - axis)) + [more // 2, more - more // 2]
            value = F.pad(value, flat)
    return value


@operator("Col2Im", reads=(1, 2))
def columns_to_image(
    value: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Sums of overlapping patches, in images of two axes, or one or three by way of a product."""
    sizes, blocks = numbers(image_shape), numbers(block_shape)
    n = len(sizes)
    dilation, stride, width = dilations or [1] * n, strides or [1] * n, pads or [0] * 2 * n
    padded = [s + width[i] + width[n + i] for i, s in enumerate(sizes)]
    counts = [(padded[i] - dilation[i] * (blocks[i] - 1) - 1) // stride[i] + 1 for i in range(n)]
    channels = value.shape[1] // math.prod(blocks)
    parts = value.reshape(value.shape[0], channels, *blocks, *counts)
    for i in range(n):  # one axis of patches after the other
        spread = torch.zeros(blocks[i], counts[i], padded[i], dtype=value.dtype)
        for k in range(blocks[i]):
            for j in range(counts[i]):
                spread[k, j, k * dilation[i] + j * stride[i]] = 1
        # blocks that are left come first, then counts, then what is done
        parts = torch.tensordot(parts, spread, ([2, 2 + n - i], [0, 1]))
    for i in range(n):
        parts = parts.narrow(2 + i, width[i], sizes[i])
    return parts


@operator("ReverseSequence")
def reverse_sequence(
    value: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first elements of each sequence in reverse, the others where they are."""
    steps = torch.arange(value.shape[time_axis])
    ends = lengths.unsqueeze(-1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    if time_axis < batch_axis:
        places = places.transpose(0, 1)
    places = places.reshape(*places.shape, *[1] * (value.ndim - 2)).expand(value.shape)
    return torch.gather(value, time_axis, places)
