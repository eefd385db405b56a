"""The cheapest permutation of a matrix of costs, or of each of many, by the fastest solver at hand.

That is lapx's, Jonker's and Volgenant's algorithm in Rust: of scipy's and lapx's the fastest on the
matrices that occur in matching (`python -m benchmarks.assignment`). Where it does not load, scipy's
takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fxrebasin.layout import IntArray
from fxrebasin.solvers.scaling import Gains

one: Callable[..., Any] | None
many: Callable[..., Any] | None
try:
    from lap import lapjvr as one
    from lap import lapjvr_batch as many
except ImportError:  # a package with the same module, lap, may have taken lapx's place
    one = many = None


def cheapest(costs: Gains) -> IntArray:
    """The permutation p with the least sum of `costs[i, p[i]]`.

    Args:
        costs: floats of shape (n, n), finite.

    Returns:
        int64 of shape (n,).
    """
    if one is None:
        return np.asarray(linear_sum_assignment(costs)[1])
    return np.asarray(one(costs, return_cost=False)[1])


def cheapest_of_each(costs: Gains) -> IntArray:
    """The same for many matrices, on as many threads as torch is set to.

    Args:
        costs: floats of shape (count, n, n), finite.

    Returns:
        int64 of shape (count, n).
    """
    if many is None:
        found = [cheapest(each) for each in costs]
    else:
        found = many(costs, return_cost=False, n_threads=torch.get_num_threads())[1]
    return np.array(found, dtype=np.int64).reshape(costs.shape[:2])
