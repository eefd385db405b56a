"""Sums, means, extremes over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fxrebasin.importers.onnx.registry import Function, numbers, operator

_Reduction: TypeAlias = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(function: _Reduction) -> Function:
    """With axes as an attribute, or as an input since opset 13 or 18; all if there are none."""

    def reduced(
        value: Tensor,
        places: Tensor | None = None,
        *,
        axes: list[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        given = numbers(axes if places is None else places)
        if not given and noop_with_empty_axes:
            return value
        over = [axis % max(value.ndim, 1) for axis in given] or list(range(value.ndim))
        return function(value, over, bool(keepdims)).to(value.dtype)

    return reduced


def _widened(value: Tensor) -> Tensor:
    """Whole numbers as numbers with a fraction."""
    return value if value.is_floating_point() or value.is_complex() else value.double()


def _extreme(function: _Reduction, empty: float) -> _Reduction:
    """Of nothing it is infinite, or the limit of the type."""

    def found(value: Tensor, axes: list[int], keepdims: bool) -> Tensor:
        if value.numel():
            return function(value, axes, keepdims) if axes else value
        sizes = [1 if at in axes else size for at, size in enumerate(value.shape)]
        if not keepdims:
            sizes = [size for at, size in enumerate(value.shape) if at not in axes]
        if value.is_floating_point():
            return torch.full(sizes, empty, dtype=value.dtype)
        if value.dtype is torch.bool:
            return torch.full(sizes, empty > 0)
        limits = torch.iinfo(value.dtype)
        return torch.full(sizes, limits.max if empty > 0 else limits.min, dtype=value.dtype)

    return found


def _product(value: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        value = torch.prod(value, axis, keepdims)
    return value


def _sum(value: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return torch.sum(value, axes, keepdims) if axes else value


_REDUCTIONS: Mapping[str, Function] = {
    "ReduceSum": _reduction(_sum),
    "ReduceMean": _reduction(
        lambda x, axes, keep: torch.mean(_widened(x), axes, keep) if axes else x
    ),
    "ReduceMax": _reduction(_extreme(torch.amax, -math.inf)),
    "ReduceMin": _reduction(_extreme(torch.amin, math.inf)),
    "ReduceProd": _reduction(_product),
    "ReduceL1": _reduction(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: _sum(_widened(x) ** 2, axes, keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: _sum(x * x, axes, keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: _sum(_widened(x), axes, keep).log()),
    "ReduceLogSumExp": _reduction(
        lambda x, axes, keep: torch.logsumexp(_widened(x), axes, keep) if axes else x
    ),
}

for _name, _function in _REDUCTIONS.items():
    operator(_name, reads=(1,))(_function)
