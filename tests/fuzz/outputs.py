"""What a program returns, and how much two returns differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def tensors(found: object) -> list[Tensor]:
    """The tensors in what a program returns."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        return [t for item in found for t in tensors(item)]
    if hasattr(found, "__slots__"):
        return tensors([getattr(found, name) for name in found.__slots__])
    return tensors(vars(found)) if hasattr(found, "__dict__") else []


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest absolute difference of an output, relative to its largest value."""
    worst = 0.0
    for one, two in zip(expected, found, strict=True):
        if one.shape != two.shape:
            return math.inf
        if one.numel():
            change = float((one - two).abs().max()) / (float(one.abs().max()) or 1.0)
            if math.isnan(change):
                return math.inf
            worst = max(worst, change)
    return worst
