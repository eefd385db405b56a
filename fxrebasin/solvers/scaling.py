"""Prices of columns by Sinkhorn's scaling (Sinkhorn and Knopp 1967; Cuturi 2013).

The scaling of exp(gains / temperature) that makes all row and column sums 1 has a factor for each
column; the logarithms of these factors tend to prices at which every row is content with its own
column as the temperature falls. A few rounds come near enough that the assignment itself, which
remains exact, is short.
"""

from __future__ import annotations

import numpy as np

from fxrebasin.solvers.auction import Gains, Prices

# Temperatures, as shares of how far the best gain of a row is above its mean.
_SHARES = (1 / 20, 1 / 100)
_ROUNDS = 6
# Logarithms below this count as this, so that sums neither vanish nor overflow in float32.
_LOWEST = -60


def scale_prices(gains: Gains, prices: Prices) -> None:
    """Find prices at which most rows get a column that they want.

    Args:
        gains: floats of shape (n, n).
        prices: those of similar gains, or zeros; float64 of shape (n,). They are updated.
    """
    unit = float(gains.max(axis=1).mean() - gains.mean())
    if unit <= 0:
        return
    kernel = np.empty_like(gains)
    for share in _SHARES[-1:] if prices.any() else _SHARES:
        temperature = share * unit
        np.subtract(gains, prices.astype(gains.dtype), out=kernel)
        kernel -= kernel.max(axis=1)[:, None]
        kernel *= gains.dtype.type(1 / temperature)
        np.maximum(kernel, _LOWEST, out=kernel)
        np.exp(kernel, out=kernel)
        column = np.ones(len(gains), gains.dtype)
        for _ in range(_ROUNDS):
            row = 1 / kernel.dot(column)
            column = 1 / row.dot(kernel)
        prices -= temperature * np.log(column)
