"""Linear assignment: the permutation that collects the most gain, with ties broken in a fixed way.

Any solver is many times faster on large gains once they are reduced by good prices (see `scaling`):
most rows then find their column at once, and the solution stays the same.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from fxrebasin.layout import IntArray
from fxrebasin.solvers.cheapest import cheapest, cheapest_of_each
from fxrebasin.solvers.scaling import Gains, Prices, costs_in_place, easy_costs, gains_again

# Gains are sums of float32 products: what differs by less than this share of them is a tie.
ROUNDING = 8 * float(np.finfo(np.float32).eps)
# Up to this size all permutations are tried at once, which is faster than a call for each matrix.
_TRY_ALL = 4
# From this size on, prices cost less than they save.
_PRICES_FROM = 112


def assign(gains: Gains, prefer: IntArray | None = None, prices: Prices | None = None) -> IntArray:
    """The permutation p that maximises the sum of `gains[i, p[i]]`.

    Args:
        gains: floats of shape (n, n), finite.
        prefer: int64 of shape (n,), the permutation to stay close to where several are equally good
            (up to rounding); the identity by default.
        prices: float64 of shape (n,), what an earlier solution of similar gains left here, or
            zeros; they are updated. How good the solution is does not depend on them, only the
            time that it takes.

    Returns:
        int64 of shape (n,).

    Example:
        >>> import numpy as np
        >>> assign(np.array([[0.0, 5.0, 1.0], [4.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
        array([1, 0, 2])
        >>> assign(np.zeros((3, 3)))
        array([0, 1, 2])
    """
    n = len(gains)
    prefer = np.arange(n) if prefer is None else prefer
    if n <= _TRY_ALL:
        return np.asarray(_best_of_all(gains[None], prefer[None])[0])
    solved = _solved(gains, prices)
    _settle(gains, solved, prefer)
    return solved


def assign_in_place(gains: Gains, prefer: IntArray | None = None) -> IntArray:
    """The same permutation as that of `assign`, without memory for a second matrix.

    Args:
        gains: floats of shape (n, n), finite; they are others on the way, and come back up to
            rounding.
        prefer: as for `assign`.

    Returns:
        int64 of shape (n,).

    Example:
        >>> import numpy as np
        >>> assign_in_place(np.array([[0.0, 5.0, 1.0], [4.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
        array([1, 0, 2])
    """
    n = len(gains)
    if n < _PRICES_FROM:
        return assign(gains, prefer)
    prefer = np.arange(n) if prefer is None else prefer
    solved: IntArray = gains.argmax(axis=1)
    if np.count_nonzero(np.bincount(solved)) != n:
        prices = np.zeros(n)
        lowest = costs_in_place(gains, prices)
        solved = cheapest(gains)
        gains_again(gains, prices, lowest)
    _settle(gains, solved, prefer)
    return solved


def assign_batch(gains: Gains, prefer: IntArray | None = None) -> IntArray:
    """Solve many assignments of one size.

    Args:
        gains: floats of shape (count, n, n), finite.
        prefer: int64 of shape (count, n); the identity by default.

    Returns:
        int64 of shape (count, n).
    """
    count, n, _ = gains.shape
    if prefer is None:
        prefer = np.broadcast_to(np.arange(n), (count, n))
    if n <= _TRY_ALL:
        return _best_of_all(gains, prefer)
    return _settled(gains, _solved_each(gains), prefer)


def collected(gains: Gains, chosen: IntArray) -> npt.NDArray[np.float64]:
    """What each of many permutations collects, summed in float64.

    Args:
        gains: floats of shape (..., n, n).
        chosen: int64 of shape (..., n).

    Returns:
        float64 of shape (...).
    """
    return np.asarray(_entries(gains, chosen).sum(axis=-1))


def improves(gains: Gains, chosen: IntArray, current: IntArray) -> npt.NDArray[np.bool_]:
    """Whether `chosen` collects more than `current`, by more than rounding explains.

    Only units that move are compared, so that a small gain is not lost beside large sums.

    Args:
        gains: floats of shape (..., n, n).
        chosen: int64 of shape (..., n).
        current: int64 of shape (..., n).

    Returns:
        Booleans of shape (...).
    """
    moved = chosen != current
    if not moved.any():
        return np.zeros(chosen.shape[:-1], dtype=bool)
    after, before = _entries(gains, chosen), _entries(gains, current)
    scale = np.where(moved, np.abs(after) + np.abs(before), 0.0).sum(axis=-1)
    return np.asarray(np.where(moved, after - before, 0.0).sum(axis=-1) > ROUNDING * scale)


def _entries(gains: Gains, chosen: IntArray) -> npt.NDArray[np.float64]:
    """`gains[..., i, chosen[..., i]]` in float64."""
    if gains.ndim == 2:
        return gains[np.arange(len(gains)), chosen].astype(np.float64)
    return np.take_along_axis(gains, chosen[..., None], axis=-1)[..., 0].astype(np.float64)


def _solved(gains: Gains, prices: Prices | None) -> IntArray:
    """An optimal permutation; `prices` are updated where that can help the next time."""
    n = len(gains)
    if n < _PRICES_FROM:
        return cheapest(-gains)
    best: IntArray = gains.argmax(axis=1)
    if np.count_nonzero(np.bincount(best)) == n:
        return best
    return cheapest(easy_costs(gains, np.zeros(n) if prices is None else prices))


def _solved_each(gains: Gains) -> IntArray:
    """Optimal permutations of many gains."""
    if gains.shape[-1] < _PRICES_FROM:
        return cheapest_of_each(-gains)
    solved = np.empty(gains.shape[:2], dtype=np.int64)
    for k, own in enumerate(gains):
        solved[k] = _solved(own, None)
    return solved


def _best_of_all(gains: Gains, prefer: IntArray) -> IntArray:
    """Try every permutation; among the best, the one with most units where `prefer` has them."""
    n = gains.shape[-1]
    every = np.array(list(permutations(range(n))), dtype=np.int64)
    entries = gains[:, np.arange(n), every].astype(np.float64)
    totals = entries.sum(axis=-1)
    slack = ROUNDING * np.abs(entries).sum(axis=-1).max(axis=-1, initial=0.0)
    tied = totals >= (totals.max(axis=-1) - slack)[:, None]
    kept = (every == prefer[:, None]).sum(axis=-1)
    return np.asarray(every[np.where(tied, kept, -1).argmax(axis=-1)])


def _settled(gains: Gains, solved: IntArray, prefer: IntArray) -> IntArray:
    """Put units where `prefer` has them wherever exchanging two of them costs nothing."""
    for own, chosen, wanted in zip(gains, solved, prefer, strict=True):
        _settle(own, chosen, wanted)
    return solved


def _settle(gains: Gains, solved: IntArray, prefer: IntArray) -> None:
    """Exchange in place, one unit at a time."""
    (out_of_place,) = (solved != prefer).nonzero()
    if not len(out_of_place):
        return
    inverse = np.empty_like(solved)
    inverse[solved] = np.arange(len(solved))
    others = inverse[prefer[out_of_place]]
    if not _exchange_is_free(gains, solved, prefer, out_of_place, others).any():
        return
    for i in out_of_place:
        mine, wanted = solved[i], prefer[i]
        j = inverse[wanted]
        if mine != wanted and _exchange_is_free(gains, solved, prefer, i, j):
            solved[i], solved[j] = wanted, mine
            inverse[wanted], inverse[mine] = i, j


def _exchange_is_free(
    gains: Gains, solved: IntArray, prefer: IntArray, unit: Any, other: Any
) -> Any:
    """Whether units collect no less, up to rounding, if they and others exchange what they have."""
    mine, wanted = solved[unit], prefer[unit]
    rows, columns = np.array([unit, other, unit, other]), np.array([wanted, mine, mine, wanted])
    entries = gains[rows, columns].astype(np.float64)
    gain = entries[:2].sum(axis=0) - entries[2:].sum(axis=0)
    return gain >= -ROUNDING * np.abs(entries).sum(axis=0)
