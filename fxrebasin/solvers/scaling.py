"""Prices of columns by Sinkhorn's scaling (Sinkhorn and Knopp 1967; Cuturi 2013).

The scaling of exp(gains / temperature) that makes all row and column sums 1 has a factor for each
column; as the temperature falls, the logarithms of these factors tend to prices at which every row
is content with its own column. After a few rounds they are close enough for the assignment itself,
which stays exact, to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fxrebasin.layout import FloatArray, IntArray

Gains: TypeAlias = FloatArray
Prices: TypeAlias = npt.NDArray[np.float64]

# Temperatures, as shares of how far the best gain of a row is above its mean.
SHARES = (1 / 12, 1 / 60)
# How often rows, then columns, are scaled at each temperature; softmax scales the rows first.
_ROUNDS = 5
# Smaller shares of a row are raised to this, so that sums neither vanish nor overflow in float32.
_LEAST = 1e-26
# Prices farther apart than this, in the same unit, do not belong to such gains.
_FARTHEST = 100
# Prices are good enough while this share of the columns is what some row wants most.
_WANTED = 0.7
# Elements of rows that are worked on at once where there is no room for a second matrix.
_BLOCK = 2**22


def easy_costs(gains: Gains, prices: Prices) -> Gains:
    """Costs whose cheapest assignment is the best one for the gains, and is found quickly.

    Args:
        gains: floats of shape (n, n).
        prices: those of similar gains, or zeros; float64 of shape (n,). They are updated if too
            many rows want the same columns at these prices.

    Returns:
        Of the shape and dtype of the gains, never below 0: how much less than the column that it
        wants most a row gets from a column at these prices.
    """
    unit = _unit(gains)
    known = 0 < np.ptp(prices) <= _FARTHEST * unit
    if not known:
        prices[:] = 0
    elif (costs := _reduced_if_easy(gains, prices)) is not None:
        return costs
    if unit > 0:
        _scale(gains, prices, [share * unit for share in (SHARES[-1:] if known else SHARES)])
    return _reduced(gains, prices)[0]


def costs_in_place(gains: Gains, prices: Prices) -> Gains:
    """Such costs in the place of the gains, a few rows at a time: no second matrix is made.

    Args:
        gains: floats of shape (n, n); costs afterwards.
        prices: float64 of shape (n,), zeros; those that were found afterwards.

    Returns:
        Of shape (n,): what was taken off each row, with which `gains_again` brings the gains back.
    """
    unit = _unit(gains)
    if unit > 0:
        _scale_in_parts(gains, prices, [share * unit for share in SHARES])
    lowest = np.empty(len(gains), gains.dtype)
    at = prices.astype(gains.dtype)
    for rows in _row_blocks(gains):
        np.subtract(at, gains[rows], out=gains[rows])
        lowest[rows] = gains[rows].min(axis=1)
        gains[rows] -= lowest[rows, None]
    return lowest


def gains_again(costs: Gains, prices: Prices, lowest: Gains) -> None:
    """Turn costs back into gains, in their place and up to rounding.

    Args:
        costs: from `costs_in_place`.
        prices: that it found.
        lowest: that it returned.
    """
    at = prices.astype(costs.dtype)
    for rows in _row_blocks(costs):
        costs[rows] += lowest[rows, None]
        np.subtract(at, costs[rows], out=costs[rows])


def _row_blocks(gains: Gains) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, gains.shape[1]))
    for start in range(0, len(gains), step):
        yield slice(start, start + step)


def _scale_in_parts(gains: Gains, prices: Prices, temperatures: Sequence[float]) -> None:
    """What `_scale` does, with kernels that are made anew for each round."""
    rows, found = torch.from_numpy(gains), torch.from_numpy(prices.astype(gains.dtype))
    for temperature in temperatures:
        column = torch.ones_like(found)
        for _ in range(_ROUNDS):
            total = torch.zeros_like(found)
            for part in _row_blocks(gains):
                kernel = torch.sub(rows[part], found).mul_(1 / temperature)
                torch.softmax(kernel, 1, out=kernel).clamp_(_LEAST)
                row = torch.mv(kernel, column).reciprocal_()
                total += torch.mv(kernel.T, row)
            column = total.reciprocal_()
        found.sub_(column.log_(), alpha=temperature)
    prices[:] = found.numpy()


def _reduced_if_easy(gains: Gains, prices: Prices) -> Gains | None:
    """Costs at given prices; None if too many rows want the same columns."""
    costs, most_wanted = _reduced(gains, prices)
    wanted = np.count_nonzero(np.bincount(most_wanted))
    return costs if wanted >= _WANTED * len(costs) else None


def _unit(gains: Gains) -> float:
    """How far the best gain of a row is above its mean."""
    # In torch, so that no more threads run than it is set to; numpy's products have their own.
    return unit_of(torch.from_numpy(gains))


def unit_of(rows: torch.Tensor) -> float:
    """How far the best gain of a row is above its mean.

    Args:
        rows: gains of shape (n, n), on any device.
    """
    return float(rows.amax(1).mean() - rows.mean())


def _scale(gains: Gains, prices: Prices, temperatures: Sequence[float]) -> None:
    """Find prices at which most rows get a column that they want, starting from given ones."""
    found = torch.from_numpy(prices.astype(gains.dtype))
    scale_rows(torch.from_numpy(gains), found, temperatures)
    prices[:] = found.numpy()


def scale_rows(rows: torch.Tensor, found: torch.Tensor, temperatures: Sequence[float]) -> None:
    """Find prices at which most rows get a column that they want, starting from given ones.

    Args:
        rows: gains of shape (n, n), on any device.
        found: prices of shape (n,), beside them; changed in place.
        temperatures: in the unit of the gains, falling.
    """
    kernel, row, column = torch.empty_like(rows), torch.empty_like(found), torch.empty_like(found)
    columns = kernel.T
    for temperature in temperatures:
        torch.sub(rows, found, out=kernel).mul_(1 / temperature)
        # In place, as PyTorch's own attention does it: another matrix would count as memory.
        torch.softmax(kernel, 1, out=kernel).clamp_(_LEAST)
        torch.sum(kernel, 0, out=column).reciprocal_()
        for _ in range(_ROUNDS - 1):
            torch.mv(kernel, column, out=row).reciprocal_()
            torch.mv(columns, row, out=column).reciprocal_()
        found.sub_(column.log_(), alpha=temperature)


def _reduced(gains: Gains, prices: Prices) -> tuple[Gains, IntArray]:
    """Costs at given prices, and the column that each row wants most."""
    costs = prices.astype(gains.dtype) - gains
    most_wanted = costs.argmin(axis=1)
    costs -= costs[np.arange(len(costs)), most_wanted][:, None]
    return costs, most_wanted
