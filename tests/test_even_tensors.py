"""What starts out as one number along an axis need not stay so: indices, orders and edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import permuted

AT = torch.tensor([1, 3])
Way = Callable[[Tensor, Tensor], Tensor]


class Even(nn.Module):
    """Five places that hold one number, what an operator makes of them, and a weight per place."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave, self.way = nn.Linear(3, 1), nn.Linear(5, 2), way

    def forward(self, x: Tensor) -> Tensor:
        even = self.enter(x).expand(-1, 5)
        found: Tensor = self.leave(self.way(even, x).to(x.dtype))
        return found


def by_data(x: Tensor) -> Tensor:
    return (x[:, :2] > 0).long()


def renormed(even: Tensor, x: Tensor) -> Tensor:
    rows = torch.tensor([0, 2])
    return torch.ops.aten.embedding_renorm(9 * even.t(), rows, 0.1, 2.0).t()


WAYS: dict[str, Way] = {
    "running sum": lambda e, x: e.cumsum(-1),
    "running product": lambda e, x: e.cumprod(-1),
    "place of the largest so far": lambda e, x: e.cummax(-1)[1],
    "order": lambda e, x: e.argsort(-1),
    "places of the largest": lambda e, x: e.topk(5, -1)[1],
    "rows that are scaled down": renormed,
    "added to some": lambda e, x: e.index_add(1, AT, e[:, :2].sin()),
    "written to some": lambda e, x: e.index_copy(1, AT, e[:, :2].sin()),
    "one number written to some": lambda e, x: e.index_fill(1, AT, 2.0),
    "written by data": lambda e, x: e.scatter(1, by_data(x), 2.0),
    "added by data": lambda e, x: e.scatter_add(1, by_data(x), e[:, :2]),
    "largest by data": lambda e, x: e.scatter_reduce(1, by_data(x), e[:, :2].sin(), "amax"),
    "one place": lambda e, x: e.select_scatter(e[:, 0].sin(), 1, 2),
    "a slice": lambda e, x: e.slice_scatter(e[:, :2].sin(), 1, 1, 3),
    "a triangle": lambda e, x: e.tril(),
    "a convolution with edges": lambda e, x: F.conv1d(e[:, None], x.new_ones(1, 1, 3), padding=1)[
        :, 0
    ],
    "an average with edges": lambda e, x: F.avg_pool1d(e[:, None], 3, 1, 1)[:, 0],
    "padding": lambda e, x: F.pad(e[:, :3], (1, 1)),
    "frequencies": lambda e, x: torch.fft.fft(e).real,
    "the first of the largest": lambda e, x: F.one_hot(e.argmax(-1), 5),
    "one row of a diagonal": lambda e, x: torch.diag_embed(e).cumsum(1)[:, 2],
    "by place": lambda e, x: torch.stack([e[:, i] * (i + 1) for i in range(5)], 1),
}


@pytest.mark.parametrize("name", WAYS)
def test_random_elements_change_nothing(name: str, generator: torch.Generator) -> None:
    model = Even(WAYS[name]).double().eval()
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    symmetry = fxrebasin.analyze(model, x)
    other = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    for seed in range(2):
        moved = permuted(model, symmetry.random(seed))
        for values in (x, other):
            torch.testing.assert_close(moved(values), model(values), rtol=1e-9, atol=1e-9)


def test_they_are_interchangeable_while_they_are_even() -> None:
    model = Even(lambda e, x: e.sin()).eval()
    assert fxrebasin.analyze(model, torch.randn(7, 3)).classes[0].size == 5
