"""The matrix products and assignments of a solve, called bare: what no solver can do without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from fxrebasin.solvers import assignment, blocks, gram, nested


@dataclass
class Floor:
    """Seconds, and numbers of calls, of a solve's products and assignments."""

    product_seconds: float = 0.0
    assignment_seconds: float = 0.0
    products: int = 0
    assignments: int = 0

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.product_seconds + self.assignment_seconds


@contextmanager
def recorded(clock: Callable[[], float] = time.perf_counter) -> Iterator[Floor]:
    """Run each product and each assignment of the solver a second time, with nothing around it.

    The second call gets operands that are contiguous and warm in the cache already.

    Args:
        clock: to time it with.
    """
    floor = Floor()

    def bare(call: Callable[..., Any], *args: Any) -> float:
        start = clock()
        call(*args)
        return clock() - start

    add_products, products = gram.add_products, blocks.products
    solved, each, best_of_all = assignment._solved, assignment._solved_each, assignment._best_of_all

    def counted_add(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = add_products(total, a, b)
        again = None if total is None else total.clone()
        floor.product_seconds += bare(add_products, again, a.contiguous(), b.contiguous())
        floor.products += 1
        return found

    def counted_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = products(a, b)
        floor.product_seconds += bare(products, a.contiguous(), b.contiguous())
        floor.products += len(a)
        return found

    def counted_solved(gains: Any, prices: Any) -> Any:
        before = None if prices is None else prices.copy()
        found = solved(gains, prices)
        floor.assignment_seconds += bare(solved, gains, before)
        floor.assignments += 1
        return found

    def counted_each(gains: Any) -> Any:
        found = each(gains)
        if gains.shape[-1] < assignment._PRICES_FROM:  # larger ones are counted one by one
            floor.assignment_seconds += bare(each, gains)
            floor.assignments += len(gains)
        return found

    def counted_all(gains: Any, prefer: Any) -> Any:
        found = best_of_all(gains, prefer)
        floor.assignment_seconds += bare(best_of_all, gains, prefer)
        floor.assignments += len(gains)
        return found

    with (
        patch.object(gram, "add_products", counted_add),
        patch.object(blocks, "products", counted_products),
        patch.object(nested, "products", counted_products),
        patch.object(assignment, "_solved", counted_solved),
        patch.object(assignment, "_solved_each", counted_each),
        patch.object(assignment, "_best_of_all", counted_all),
    ):
        yield floor
