"""Experts as products of sorted rows with one matrix each, and biases looked up for the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.structures.table import f, shaped

Lookup = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Biases of rows, from those of experts, the sorted numbers of experts, and all of them."""


def grouped(rows: Tensor, stack: Tensor, ends: Tensor) -> Tensor:
    """What `_grouped_mm` computes, also of numbers of double precision."""
    if rows.dtype is torch.float32:
        return torch._grouped_mm(rows, stack, offs=ends)
    starts = [0, *ends.tolist()]
    products = [rows[a:b] @ matrix for a, b, matrix in zip(starts, starts[1:], stack, strict=False)]
    return torch.cat(products)


class Experts(nn.Module):
    """The two best of three experts for each row, with biases.

    Args:
        lookup: gives the rows their biases.
        count: gives the number of rows of each expert.
        change: does something to the units of all rows, given a vector that they may meet.
    """

    def __init__(
        self,
        lookup: Lookup,
        count: Callable[[Tensor], Tensor],
        change: Callable[[Tensor, Tensor], Tensor] = lambda h, _: h,
    ) -> None:
        super().__init__()
        self.lookup, self.count, self.change = lookup, count, change
        self.vector = shaped(4)
        self.enter, self.router, self.leave = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.up, self.down = shaped(3, 8, 4), shaped(3, 4, 8)
        self.up_bias, self.down_bias = shaped(3, 4), shaped(3, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        weights, chosen = self.router(x).topk(2)
        numbers, order = chosen.reshape(-1).sort()
        ends = self.count(numbers).cumsum(0, dtype=torch.int32)
        h = grouped(x[order // 2], self.up, ends)
        h = h + self.lookup(self.up_bias, numbers, chosen.reshape(-1))
        h = self.change(F.gelu(h), self.vector)
        out = grouped(h, self.down, ends) + self.down_bias[numbers]
        out = out * weights.reshape(-1)[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return self.leave(x + out[back].view(-1, 2, 8).sum(1))


def counts(numbers: Tensor) -> Tensor:
    return torch.histc(numbers.float(), bins=3, min=0, max=2)


BY_NUMBER: dict[str, Lookup] = {
    "indexing": lambda bias, numbers, _: bias[numbers],
    "index_select": lambda bias, numbers, _: bias.index_select(0, numbers),
    "a copy": lambda bias, numbers, _: bias[numbers.int()],
    "indexing of those of other experts": lambda bias, numbers, _: bias.roll(1, 0)[numbers],
}

OTHERWISE: dict[str, Lookup] = {
    "unsorted": lambda bias, _, chosen: bias[chosen],
    "the other way round": lambda bias, numbers, _: bias[numbers.flip(0)],
    "sorted the other way round": lambda bias, _, chosen: bias[chosen.sort(descending=True)[0]],
    "one further": lambda bias, numbers, _: bias[(numbers + 1) % 3],
    "clamped": lambda bias, numbers, _: bias[numbers.clone().clamp_(max=1)],
    "sorted again, of others": lambda bias, _, chosen: bias[(2 - chosen).sort()[0]],
    "moved": lambda bias, numbers, _: bias[numbers].roll(1, 0),
    "flipped": lambda bias, numbers, _: bias[numbers].flip(0),
    "exchanged": lambda bias, numbers, _: bias[numbers][torch.arange(len(numbers)).flip(0)],
    "shifted": lambda bias, numbers, _: F.pad(bias[numbers][1:], (0, 0, 0, 1)),
}


ACROSS_ROWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the first rows alone": lambda h, vector: torch.cat([h[:1] * vector, h[1:]]),
    "the last row alone": lambda h, vector: torch.cat([h[:-1], (h[-1] * vector)[None]]),
    "every other row": lambda h, _: h[::2].repeat_interleave(2, 0),
    "rows of the first": lambda h, _: h * h[0],
    "a mask": lambda h, _: h.masked_fill(torch.eye(4).repeat(-(-len(h) // 4), 1)[: len(h)] > 0, 1),
    "axes exchanged": lambda h, _: h.view(2, -1, 4).transpose(0, 1).reshape(-1, 4),
}


@pytest.mark.parametrize("name", ACROSS_ROWS)
def test_what_tells_rows_apart_holds_the_units_of_all_experts(name: str) -> None:
    model = Experts(BY_NUMBER["indexing"], counts, ACROSS_ROWS[name])
    assert sound(model, rows=9).log10_order() < f(8) + f(4) + 0.1


@pytest.mark.parametrize("name", BY_NUMBER)
def test_units_of_experts_with_biases_are_free_for_each_expert(name: str) -> None:
    symmetry = sound(Experts(BY_NUMBER[name], counts))
    assert symmetry.log10_order() == pytest.approx(f(8) + 3 * f(4))


@pytest.mark.parametrize("name", OTHERWISE)
def test_biases_of_other_experts_hold_their_units(name: str) -> None:
    assert sound(Experts(OTHERWISE[name], counts)).log10_order() < f(8) + 3 * f(4) - 0.1


@pytest.mark.parametrize(
    "count",
    [
        lambda numbers: torch.histc(numbers.float(), bins=3, min=-1, max=1),
        lambda numbers: torch.histc(numbers.float(), bins=3, min=0, max=1),
        lambda numbers: counts(numbers).flip(0),
        lambda numbers: counts(numbers) + 0,
    ],
)
def test_other_counts_are_those_of_other_experts(count: Callable[[Tensor], Tensor]) -> None:
    model = Experts(BY_NUMBER["indexing"], count)
    symmetry = fxrebasin.analyze(model, (torch.randn(9, 5),))
    assert symmetry.log10_order() < f(8) + f(4) + 0.1


def sound(model: nn.Module, rows: int = 40) -> fxrebasin.Symmetry:
    symmetry = fxrebasin.analyze(model, (torch.randn(9, 5),))
    assert not symmetry.unknown_operators
    fresh = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    return assert_group_is_sound(model, (fresh,), symmetry=symmetry)
