"""Prices of columns at which nearly every row of an assignment is content with its own.

They come from an auction (Bertsekas 1988) in which all rows without a column bid at the same time,
with a step that is refined; it is stopped when few rows are left. An assignment at whose prices no
row would rather have another column is optimal, so good prices make the rest of the work short.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fxrebasin.layout import IntArray

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
        prices: float64 of shape (n,). They are overwritten.
    """
    unit = _unit(gains)
    prices[:] = 0
    for step in _STEPS:
        _auction(gains, prices, step * unit)


def refine_prices(gains: Gains, prices: Prices) -> bool:
    """Bring prices of similar gains up to date.

    Args:
        gains: floats of shape (n, n).
        prices: float64 of shape (n,). They are updated.

    Returns:
        Whether nearly every row gets a column that it wants.
    """
    return _auction(gains, prices, _STEPS[-1] * _unit(gains))


def _unit(gains: Gains) -> float:
    """How far the best gain of a row is above its mean."""
    return float(np.median(gains.max(axis=1) - gains.mean(axis=1)))


def reduced(gains: Gains, prices: Prices) -> Prices:
    """Costs whose cheapest assignment is the best one for the gains.

    Args:
        gains: floats of shape (n, n).
        prices: float64 of shape (n,).
    """
    return np.subtract(prices, gains, dtype=np.float64)


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
        wanted, bid = _bids(gains, prices, free)
        bid += gains.dtype.type(step)
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


def _bids(gains: Gains, prices: Gains, free: IntArray) -> tuple[IntArray, Gains]:
    """Which column each row wants, and how much more than any other."""
    wanted = np.empty(len(free), dtype=np.int64)
    lead = np.empty(len(free), dtype=gains.dtype)
    for start in range(0, len(free), _ROWS):
        part = slice(start, start + _ROWS)
        worth = gains[free[part]]
        worth -= prices
        bidder = np.arange(len(worth))
        best = worth.argmax(axis=1)
        first = worth[bidder, best]
        worth[bidder, best] = -np.inf
        wanted[part], lead[part] = best, first - worth.max(axis=1)
    return wanted, lead
