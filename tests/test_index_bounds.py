"""Models that go another way where an index is out of range, or by what a tensor prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import TraceError
from fxrebasin.running.index_bounds import check_indices

_NINE = torch.tensor([9])
_LOOK: dict[str, Callable[[Tensor], object]] = {
    "list": lambda h: h[[77]],
    "along two axes": lambda h: h[:, torch.tensor([1, 7])],
    "after a mask": lambda h: h[torch.ones(4, dtype=torch.bool), _NINE],
    "negative": lambda h: h[:, torch.tensor([-1, -9])],
    "index_select": lambda h: h.index_select(1, _NINE),
    "gather": lambda h: h.gather(1, torch.tensor([[9]])),
    "embedding": lambda h: F.embedding(_NINE, h),
    "embedding_bag": lambda h: F.embedding_bag(_NINE[None], h),
    "take": lambda h: h.take(torch.tensor([999])),
    "scatter": lambda h: h.scatter(1, torch.tensor([[9]]), 1.0),
    "scatter with a reduction": lambda h: h.scatter(1, _NINE[None], h[:, :1], reduce="add"),
    "scatter in place": lambda h: h.clone().scatter_(1, torch.tensor([[9]]), 1.0),
    "index_add": lambda h: h.index_add(1, _NINE, h[:, :1]),
    "index_fill": lambda h: h.index_fill(1, _NINE, 0.0),
    "index_put": lambda h: h.index_put((_NINE,), torch.tensor(0.0).to(h)),
    "a class that there is not": lambda h: F.cross_entropy(h, _NINE.expand(h.shape[0])),
}


class Otherwise(nn.Module):
    """Units in an order, after an error; free ones otherwise."""

    def __init__(self, look: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.look = look
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        try:
            self.look(h)
        except (IndexError, RuntimeError):
            h = h.cumsum(1)
        return self.last(h)


class Printed(nn.Module):
    """Units in an order if a weight prints so."""

    def __init__(self, *, formatted: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)
        self.formatted = formatted

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        text = f"{self.first.weight}" if self.formatted else str(self.first.weight)
        return self.last(h if "meta" in text else h.cumsum(1))


def models() -> dict[str, Callable[[], nn.Module]]:
    return {
        **{name: lambda look=look: Otherwise(look) for name, look in _LOOK.items()},
        "printed": lambda: Printed(formatted=False),
        "formatted": lambda: Printed(formatted=True),
    }


@pytest.mark.parametrize("name", models())
def test_units_are_those_of_the_way_that_is_taken(name: str) -> None:
    torch.manual_seed(0)
    model, other = (models()[name]().double().eval() for _ in range(2))
    x = torch.randn(6, 3, dtype=torch.float64)
    order = fxrebasin.analyze(model, (torch.randn(4, 3, dtype=torch.float64),)).random(seed=1)
    other.load_state_dict(order.permute_state_dict(model.state_dict()))
    with torch.no_grad():
        assert torch.allclose(other(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", models())
def test_no_graph_takes_the_other_way(name: str) -> None:
    torch.manual_seed(1)
    model, other = (models()[name]().double().eval() for _ in range(2))
    x = torch.randn(6, 3, dtype=torch.float64)
    given = (torch.randn(4, 3, dtype=torch.float64),)
    try:
        graph = fxrebasin.transform(other, ref=model, example_inputs=given, verify="exact")
    except TraceError:
        return
    with torch.no_grad():
        assert torch.allclose(graph(x), other(x), rtol=0, atol=1e-12)


def test_the_last_index_is_in_range_and_the_next_is_not() -> None:
    table = torch.empty(3, 5, device="meta")
    for func, last in (
        (torch.ops.aten.embedding.default, 2),
        (torch.ops.aten.take.default, 14),
    ):
        check_indices(func, (table, torch.tensor([0, last])), {})
        with pytest.raises(IndexError):
            check_indices(func, (table, torch.tensor([last + 1])), {})
