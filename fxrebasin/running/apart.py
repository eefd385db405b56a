"""How far two tensors are apart, relative to numbers of the magnitude that is wrong.

A number that stands for "never" (a mask of -1e9, or the least of a dtype) is beside numbers of
another kind. Divided by it, any error of theirs is nothing; so each kind has a scale of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

_BLOCK = 1 << 17  # elements of a block, so that in float64 two of them fit into a cache
_LARGE = 1e4
"""Numbers from here on may be of a kind of their own."""
_APART = 10
"""Powers of two without a number between two kinds. Rounding errors of sums reach less far."""
_LEAST, _MOST = -1074, 1024
"""Exponents of numbers of float64, as `frexp` has them."""

Blocks = Iterable[tuple[torch.Tensor, torch.Tensor]]


def relative_error(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """max |candidate - reference| / max |reference| in float64, where both are finite.

    Where numbers from 1e4 on are a thousand times as large as all that follow, the two kinds are
    looked at one by one, and the larger error counts. 0 if both tensors are zero or empty, inf if
    only the reference is zero. Any one shape.

    Example:
        >>> relative_error(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 1.0]))
        0.25
        >>> relative_error(torch.tensor([4.0, -1e9]), torch.tensor([5.0, -1e9]))
        0.25
    """
    largest = error = 0.0
    for left, right in blocks(reference, candidate):
        left, right = shared(left, right)
        largest, error = max(largest, peak(left)), max(error, peak(right - left))
    return by_kinds(error, largest, lambda: blocks(reference, candidate))


def by_kinds(error: float, largest: float, again: Callable[[], Blocks]) -> float:
    """The relative error, given what there is of all numbers together.

    Args:
        error: the largest difference.
        largest: the largest magnitude of the reference.
        again: blocks of both in float64, which are looked at once more if there may be two kinds.
    """
    if error == 0 or largest < _LARGE:
        return _ratio(error, largest)
    largest_of = torch.zeros(_MOST - _LEAST + 2, dtype=torch.float64)
    error_of = torch.zeros_like(largest_of)
    for left, right in again():
        left, right = shared(left, right)
        size = left.abs().flatten()
        at = _bins(size)
        largest_of.scatter_reduce_(0, at, size, "amax")
        error_of.scatter_reduce_(0, at, (right - left).abs().flatten(), "amax")
    return max(_ratio(wrong, scale) for wrong, scale in _kinds(largest_of, error_of))


def blocks(
    reference: torch.Tensor, candidate: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both in float64 on the CPU, some rows at a time: what a processor's cache holds."""
    width = reference.shape[-1] if reference.dim() else 1
    flat = reference.dim() < 2
    if not reference.numel():
        return
    left, right = (x.detach().reshape(-1, 1 if flat else width) for x in (reference, candidate))
    rows = max(_BLOCK // left.shape[1], 1)
    for start in range(0, left.shape[0], rows):
        yield _wide(left[start : start + rows]), _wide(right[start : start + rows])


def shared(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros where either is not finite."""
    finite = torch.isfinite(left) & torch.isfinite(right)
    return (left, right) if bool(finite.all()) else (left.where(finite, 0), right.where(finite, 0))


def peak(tensor: torch.Tensor) -> float:
    """The largest magnitude; 0 if there is nothing."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _kinds(largest: torch.Tensor, error: torch.Tensor) -> Iterator[tuple[float, float]]:
    """The largest error of each kind of numbers, and its scale.

    Args:
        largest: magnitude of the reference among numbers of each power of two; 0 where are none.
            The first is for zeros.
        error: the largest among the same.
    """
    wrong = scale = 0.0
    last = len(largest)
    for at in reversed(largest[1:].nonzero().flatten().add(1).tolist()):
        if scale >= _LARGE and last - at > _APART:
            yield wrong, scale
            wrong = scale = 0.0
        wrong, scale, last = max(wrong, float(error[at])), max(scale, float(largest[at])), at
    yield wrong, scale
    yield float(error[0]), min(scale, _LARGE)  # zeros are of the last kind, or of none


def _bins(size: torch.Tensor) -> torch.Tensor:
    """By its power of two, where a magnitude is counted; 0 for zeros."""
    exponent = torch.frexp(size).exponent.long() - _LEAST + 1
    return exponent.where(size > 0, 0)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to("cpu", wide)


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf
