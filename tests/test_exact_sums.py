"""Sums of gains do not depend on the order of their terms, nor on who adds which."""

from __future__ import annotations

import pytest
import torch

from fxrebasin.errors import InputError
from fxrebasin.ranks import ALONE
from fxrebasin.streaming.exact import ExactSum, exponent_for
from tests.support.ranks import ThreadRank, in_threads


def terms(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Many of one size, and one that is much larger and taken away again."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randn(7, 7, generator=generator, dtype=dtype) * scale for _ in range(40)]
    return [*found, 1e5 * found[0], -1e5 * found[0]]


def summed(parts: list[torch.Tensor], exponent: int) -> torch.Tensor:
    total = ExactSum(7, parts[0].dtype, exponent)

    def fill(sums: ExactSum) -> None:
        for part in parts:
            sums.add(part)

    fill(total)
    return total.sum_up(ALONE, fill)


def test_the_order_does_not_matter() -> None:
    every = terms()
    forwards, backwards = summed(every, -33), summed(every[::-1], -33)
    assert torch.equal(forwards, backwards)
    in_floats = [sum(parts) for parts in (every, every[::-1])]
    assert not torch.equal(*in_floats)  # so that there was something to lose
    exact = torch.stack(every).double().sum(0)
    assert torch.equal(forwards, exact.float())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e28])
def test_a_unit_that_was_not_right_is_replaced(scale: float) -> None:
    every = terms(scale)
    exact = torch.stack(every).double().sum(0)
    error = (summed(every, exponent_for(0.0)).double() - exact).abs().max()
    assert error <= 1e-7 * exact.abs().max()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("exponent", [-33, 90, -120])
def test_who_adds_what_does_not_matter(count: int, exponent: int) -> None:
    every = terms()

    def work(rank: ThreadRank) -> list[torch.Tensor]:
        total = ExactSum(7, torch.float32, exponent)

        def fill(sums: ExactSum) -> None:
            for part in every[rank.number :: count]:
                sums.add(part)

        fill(total)
        first = total.sum_up(rank, fill)
        return [first, total.sum_up(rank, fill)]  # summed up once more, it is still the same

    alone = summed(every, exponent)
    for found in in_threads(count, work):
        assert all(torch.equal(one, alone) for one in found)


def test_what_was_added_can_be_taken_away_and_leaves_nothing() -> None:
    total = ExactSum(7, torch.float64, -33)
    part = terms(dtype=torch.float64)[0]
    total.add(part)
    total.add(part, sign=-1)
    assert not total.numbers.any()


def test_products_that_overflow_are_refused() -> None:
    with pytest.raises(InputError, match="scale both checkpoints down"):
        ExactSum(1, torch.float32, -33).add(torch.tensor([[float("inf")]]))
