"""Prices of columns at which nearly every row of an assignment is content with its own.

They come from an auction (Bertsekas 1988) in which all rows without a column bid at the same time,
with a step that is refined; it is stopped when few rows are left. An assignment at whose prices no
row would rather have another column is optimal, so good prices make the rest of the work short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Gains: TypeAlias = npt.NDArray[np.floating[Any]]
Prices: TypeAlias = npt.NDArray[np.float64]

# Steps of the auction, in units of how far the best gain of a row is above its mean.
_STEPS = (0.1, 0.01, 0.001)
_MOST_ROUNDS = 100
# The auction leaves this share of the rows without a column.
_LEFT = 64
# Rows that are worked on together, so that they stay in a processor's cache.
_ROWS = 128


def raise_prices(gains: Gains, prices: Prices) -> None:
    """Find prices at which nearly every row gets a column that it wants.

    Args:
        gains: floats of shape (n, n).
        prices: those of similar gains, or zeros; float64 of shape (n,). They are updated.
    """
    unit = float(np.median(gains.max(axis=1) - gains.mean(axis=1)))
    if prices.any() and _auction(gains, prices, _STEPS[-1] * unit):
        return
    prices[:] = 0
    for step in _STEPS:
        _auction(gains, prices, step * unit)


def reduced(gains: Gains, prices: Prices) -> Prices:
    """Costs, none of them negative, whose cheapest assignment is the best one for the gains.

    Args:
        gains: floats of shape (n, n).
        prices: float64 of shape (n,).
    """
    costs = np.empty(gains.shape)
    for rows in _row_blocks(len(gains)):
        np.subtract(prices, gains[rows], out=costs[rows])
        costs[rows] -= costs[rows].min(axis=1)[:, None]
    return costs


def _row_blocks(n: int) -> Iterator[slice]:
    for first in range(0, n, _ROWS):
        yield slice(first, first + _ROWS)


def _auction(gains: Gains, exact: Prices, step: float) -> bool:
    """Raise prices by bids of all rows at once until nearly every row has a column.

    Returns whether it came so far; it is given up where prices rise too slowly.
    """
    n = len(gains)
    prices = exact.astype(gains.dtype)
    owner = np.full(n, -1)
    column = np.full(n, -1)
    free = np.arange(n)
    for _ in range(_MOST_ROUNDS):
        worth = gains[free]
        worth -= prices
        bidder = np.arange(len(free))
        wanted = worth.argmax(axis=1)
        first = worth[bidder, wanted]
        worth[bidder, wanted] = -np.inf
        bid = first - worth.max(axis=1) + gains.dtype.type(step)
        # The highest bid for a column is written last.
        order = np.argsort(bid, kind="stable")
        winner = np.full(n, -1)
        winner[wanted[order]] = order
        sold = np.flatnonzero(winner >= 0)
        won = winner[sold]
        prices[sold] += bid[won]
        displaced = owner[sold]
        column[displaced[displaced >= 0]] = -1
        owner[sold] = free[won]
        column[free[won]] = sold
        free = np.flatnonzero(column < 0)
        if len(free) <= n // _LEFT:
            break
    exact[:] = prices
    return len(free) <= n // _LEFT
