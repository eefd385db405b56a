"""Elements by their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fxrebasin.importers.onnx.registry import number, operator, whole
from fxrebasin.running.numberless import has_no_data

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _from_the_front(places: Tensor, size: int) -> Tensor:
    """Negative places count from the end."""
    return torch.where(places < 0, places + size, places).long()


def _expanded_from_the_front(places: Tensor, size: int) -> Tensor:
    """The same; what was expanded still is, so that it reads as what chooses whole slices."""
    steps = places.stride()
    if 0 not in steps:
        return _from_the_front(places, size)
    once = places[tuple(slice(None) if step else slice(1) for step in steps)]
    found = _from_the_front(once.squeeze(), size)
    return found.reshape(once.shape).expand(places.shape)


@operator("Gather")
def gather(value: Tensor, places: Tensor, *, axis: int = 0) -> Tensor:
    """Slices along an axis."""
    axis %= value.ndim
    if places.ndim == 0 and not has_no_data(places):
        return value.select(axis, whole(places))
    indices: list[Tensor | None] = [*[None] * axis, _from_the_front(places, value.shape[axis])]
    found: Tensor = torch.ops.aten.index.Tensor(value, indices)
    return found


@operator("GatherElements")
def gather_elements(value: Tensor, places: Tensor, *, axis: int = 0) -> Tensor:
    """One element for each place."""
    return torch.gather(value, axis, _expanded_from_the_front(places, value.shape[axis]))


def _columns(places: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The places along each axis, from the last axis of a table of them."""
    return [_from_the_front(places.select(-1, at), sizes[at]) for at in range(places.shape[-1])]


@operator("GatherND")
def gather_nd(value: Tensor, places: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices by places along several axes, in each row of the batch on its own."""
    behind = [1] * (places.ndim - 1)
    rows = [
        torch.arange(value.shape[at]).reshape([*behind[:at], -1, *behind[at + 1 :]])
        for at in range(batch_dims)
    ]
    columns = _columns(places, value.shape[batch_dims:])
    found: Tensor = torch.ops.aten.index.Tensor(value, [*rows, *columns])
    return found


@operator("ScatterND")
def scatter_nd(
    value: Tensor, places: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """Slices replaced, or combined with others."""
    count = places.shape[-1]
    columns = _columns(places, value.shape)
    if reduction == "none":
        return value.index_put(tuple(columns), updates)
    if reduction == "add":
        return value.index_put(tuple(columns), updates, accumulate=True)
    flat = value.reshape(-1, *value.shape[count:])
    strides = [math.prod(value.shape[at + 1 : count]) for at in range(count)]
    target = sum(column * stride for column, stride in zip(columns, strides, strict=True))
    parts = updates.reshape(-1, *value.shape[count:])
    target = torch.as_tensor(target).reshape(-1, *[1] * (flat.ndim - 1)).expand(parts.shape)
    return flat.scatter_reduce(0, target, parts, _REDUCTIONS[reduction]).reshape(value.shape)


@operator("ScatterElements", "Scatter")
def scatter_elements(
    value: Tensor, places: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Elements replaced, or combined with others."""
    target = _from_the_front(places, value.shape[axis])
    if reduction == "none":
        return value.scatter(axis, target, updates)
    return value.scatter_reduce(axis, target, updates, _REDUCTIONS[reduction])


@operator("TensorScatter")
def tensor_scatter(
    cache: Tensor,
    update: Tensor,
    starts: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache with a stretch of each row replaced."""
    axis %= cache.ndim
    first = torch.zeros(cache.shape[0], dtype=torch.int64) if starts is None else starts
    places = first.unsqueeze(-1) + torch.arange(update.shape[axis])
    if mode == "circular":
        places = places % cache.shape[axis]
    shape = [1] * cache.ndim
    shape[0], shape[axis] = places.shape
    return cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


@operator("OneHot", reads=(1,))
def one_hot(places: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """Two values, the second at each place."""
    count = int(number(depth))
    given = _from_the_front(places, count)
    axis %= given.ndim + 1
    steps = torch.arange(count).reshape([-1, *[1] * (given.ndim - axis)])
    return torch.where(given.unsqueeze(axis) == steps, values[1], values[0])


@operator("NonZero")
def non_zero(value: Tensor) -> Tensor:
    """The places of all that is not zero, one column each."""
    return torch.nonzero(torch.atleast_1d(value)).T


@operator("Compress", reads=(1,))
def compress(value: Tensor, kept: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices that are marked."""
    if axis is None:
        value, axis = value.reshape(-1), 0
    return value.index_select(axis, torch.nonzero(kept).reshape(-1))


@operator("ArgMax")
def arg_max(
    value: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """The first place of the largest, or the last."""
    return _placed(torch.argmax, value, axis, bool(keepdims), bool(select_last_index))


@operator("ArgMin")
def arg_min(
    value: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """The first place of the smallest, or the last."""
    return _placed(torch.argmin, value, axis, bool(keepdims), bool(select_last_index))


def _placed(
    place: Callable[[Tensor, int, bool], Tensor],
    value: Tensor,
    axis: int,
    keepdims: bool,
    last: bool,
) -> Tensor:
    if not last:
        return place(value, axis, keepdims)
    return value.shape[axis] - 1 - place(value.flip(axis), axis, keepdims)


@operator("TopK", reads=(1,))
def top_k(
    value: Tensor,
    count: Tensor | None = None,
    *,
    k: int = 0,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Tensor, Tensor]:
    """The largest and their places; of equals the one with the lower place comes first."""
    wanted = k if count is None else whole(count)
    values, places = torch.sort(value, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, wanted), places.narrow(axis, 0, wanted)


@operator("Unique")
def unique(
    value: Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, where each comes first, which each element is, and how often each comes."""
    if axis is None:
        value, axis = value.reshape(-1), 0
    values, inverse, counts = torch.unique(value, dim=axis, return_inverse=True, return_counts=True)
    first = torch.tensor([int((inverse == i).nonzero()[0, 0]) for i in range(len(counts))])
    if not sorted:
        order = first.argsort()
        values, counts, first = values.index_select(axis, order), counts[order], first[order]
        inverse = order.argsort()[inverse]
    return values, first, inverse, counts
