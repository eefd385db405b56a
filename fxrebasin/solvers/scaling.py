"""Prices of columns by Sinkhorn's scaling (Sinkhorn and Knopp 1967; Cuturi 2013).

The scaling of exp(gains / temperature) that makes all row and column sums 1 has a factor for each
column; the logarithms of these factors tend to prices at which every row is content with its own
column as the temperature falls. A few rounds come near enough that the assignment itself, which
remains exact, is short.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fxrebasin.layout import FloatArray

Gains: TypeAlias = FloatArray
Prices: TypeAlias = npt.NDArray[np.float64]

# Temperatures, as shares of how far the best gain of a row is above its mean.
_SHARES = (1 / 10, 1 / 50)
_ROUNDS = 4
# Logarithms below this count as this, so that sums neither vanish nor overflow in float32.
_LOWEST = -60
# Prices that are farther apart, in the same unit, are not of such gains.
_FARTHEST = 100


def scale_prices(gains: Gains, prices: Prices) -> None:
    """Find prices at which most rows get a column that they want.

    Args:
        gains: floats of shape (n, n).
        prices: those of similar gains, or zeros; float64 of shape (n,). They are updated.
    """
    # In torch, so that no more threads run than it is set to; numpy's products have their own.
    rows = torch.from_numpy(gains)
    unit = float(rows.amax(1).mean() - rows.mean())
    known = 0 < np.ptp(prices) <= _FARTHEST * unit
    if not known:
        prices[:] = 0
    if unit <= 0:
        return
    found = torch.from_numpy(prices.astype(gains.dtype))
    kernel, row, column = torch.empty_like(rows), torch.empty_like(found), torch.empty_like(found)
    for share in _SHARES[-1:] if known else _SHARES:
        temperature = share * unit
        torch.sub(rows, found, out=kernel)
        kernel.sub_(kernel.amax(1, keepdim=True)).mul_(1 / temperature).clamp_(_LOWEST).exp_()
        column.fill_(1)
        for _ in range(_ROUNDS):
            torch.mv(kernel, column, out=row).reciprocal_()
            torch.mv(kernel.T, row, out=column).reciprocal_()
        found.sub_(column.log_(), alpha=temperature)
    prices[:] = found.numpy()


def reduced(gains: Gains, prices: Prices) -> Gains:
    """Costs from 0 on, whose cheapest assignment is the best one for the gains.

    Args:
        gains: floats of shape (n, n).
        prices: float64 of shape (n,), at most some times as far apart as gains are.

    Returns:
        Of the shape and dtype of the gains: what a row loses by a column at these prices, beside
        the one that it wants most.
    """
    costs = prices.astype(gains.dtype) - gains
    costs -= costs.min(axis=1)[:, None]
    return costs
