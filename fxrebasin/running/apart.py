"""How far two tensors are apart: by the largest number among them, and place by place.

A number that stands for "never" (a mask of -1e9, or the least of a dtype) is beside numbers of
another kind. Divided by it, any error of theirs is nothing. So a place may not be off by much of
its own number either, unless rounding errors at that place are as large, as where terms cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

_BLOCK = 1 << 17  # elements of a block, so that in float64 two of them fit into a cache


def relative_error(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    """max |candidate - reference| / max |reference| in float64, where both are finite.

    0 if both tensors are zero or empty, inf if only the reference is zero. Any one shape.

    Example:
        >>> relative_error(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 1.0]))
        0.25
    """
    largest = error = 0.0
    for left, right in blocks(reference, candidate):
        left, right = shared(left, right)
        largest, error = max(largest, peak(left)), max(error, peak(right - left))
    return ratio(error, largest)


def off_by_own(reference: torch.Tensor, candidate: torch.Tensor, share: float) -> bool:
    """Whether a number is off by more than a share of itself, where both are finite.

    Args:
        reference: in float64 or complex128, of which the parts are numbers of their own.
        candidate: the same.
        share: of a number.

    Example:
        >>> one = torch.tensor([[2.0, -1e9]], dtype=torch.float64)
        >>> off_by_own(one, one + 1e-3, 1e-4), off_by_own(one, one * (1 + 1e-6), 1e-4)
        (True, False)
    """
    left, right = shared(parts(reference), parts(candidate))
    return bool(((right - left).abs() > share * left.abs()).any())


def unexplained(
    reference: torch.Tensor, candidate: torch.Tensor, share: float, noise: torch.Tensor
) -> int:
    """How many numbers are off by more than a share of themselves, and than rounding explains.

    Rounding errors at one place may be small by luck; so what counts is the largest among numbers
    that are at most twice as large. Larger ones, such as masks, have no say.

    Args:
        reference: of any shape and dtype.
        candidate: of the same shape.
        share: of a number.
        noise: how large an error rounding may make, place by place, of the parts of `reference`.

    Example:
        >>> one = torch.tensor([1e-9, 3.0, 1e9], dtype=torch.float64)
        >>> noise = torch.tensor([1e-9, 1e-15, 1.0], dtype=torch.float64)
        >>> unexplained(one, one + torch.tensor([1e-9, 0.0, 1.0]), 1e-7, noise)
        0
        >>> unexplained(one, one + torch.tensor([0.0, 1e-3, 0.0]), 1e-7, noise)
        1
    """
    left, right = (parts(item.detach().cpu()).double().flatten() for item in (reference, candidate))
    left, right = shared(left, right)
    size, error = left.abs(), (right - left).abs()
    off = error > share * size
    ordered, order = size.sort()
    largest = noise.double().flatten()[order].cummax(0).values
    last = torch.searchsorted(ordered, 2 * size[off], right=True) - 1
    return int((error[off] > share * size[off] + largest[last]).sum())


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether numbers are rounded: real or complex ones, and no whole numbers or booleans."""
    return tensor.is_floating_point() or tensor.is_complex()


def parts(tensor: torch.Tensor) -> torch.Tensor:
    """The real and imaginary parts of a complex tensor; any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


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


def ratio(error: float, scale: float) -> float:
    """An error by its scale; 0 if there is none, inf if there is no scale."""
    if error == 0:
        return 0.0
    return error / scale if scale else math.inf


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to("cpu", wide)
