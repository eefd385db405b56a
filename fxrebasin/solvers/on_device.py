"""Gains on an accelerator: solved there where the answer is beyond doubt, else brought over once.

After scaling, most matrices have a column for each row that no other row wants. Where every row
prefers its own by more than rounding can explain, that is the one best permutation, and only its
indices leave the device.
"""

from __future__ import annotations

import torch

from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.scaling import SHARES, Gains, scale_rows, unit_of


def clear_order(gains: torch.Tensor) -> IntArray | None:
    """The best permutation, if no other one is as good up to rounding; None where it is not clear.

    Args:
        gains: float32 or float64 of shape (n, n), on any device; they stay as they are.

    Returns:
        int64 of shape (n,).

    Example:
        >>> clear_order(torch.tensor([[0.0, 5.0], [4.0, 1.0]]))
        array([1, 0])
        >>> clear_order(torch.zeros(2, 2)) is None
        True
    """
    n = len(gains)
    if n < 2:
        return None
    prices = gains.new_zeros(n)
    unit = unit_of(gains)
    if unit > 0:
        scale_rows(gains, prices, [share * unit for share in SHARES])
    least, chosen = torch.topk(prices - gains, 2, dim=1, largest=False)
    best = chosen[:, 0]
    margin = (least[:, 1] - least[:, 0]).min()
    # Another permutation collects less by at least two margins; what is a tie is told from this.
    largest = gains.abs().amax(1).double().sum() + prices.abs().max()
    clear = (margin > 2 * ROUNDING * largest) & (torch.bincount(best, minlength=n).max() == 1)
    return best.cpu().numpy() if bool(clear) else None


def to_host(tensor: torch.Tensor) -> Gains:
    """A matrix where numpy can see it.

    From an accelerator it is copied into memory that the system does not move, which takes one pass
    instead of two.

    Args:
        tensor: float32 or float64, of any shape.

    Returns:
        The memory of the tensor itself if it is on the CPU.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copied.copy_(tensor).numpy()
