"""Experts whose matrices are looked up for each row: each may have an order of units of its own."""

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

ROWS = 9
EACH = f(8) + 3 * f(4)
ALIKE = f(8) + f(4)


class Mixture(nn.Module):
    """The two best of three experts for each row, with the experts' matrices in stacks.

    Args:
        form: computes rows of 8, from the model, rows of 8 and the numbers of two experts for each.
        exchange: whether experts may change places; else their numbers are seen.
    """

    def __init__(self, form: Callable[..., Any], exchange: bool) -> None:
        super().__init__()
        self.form, self.exchange = form, exchange
        self.enter, self.router, self.leave = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.up, self.down, self.gate = shaped(3, 4, 8), shaped(3, 8, 4), shaped(3, 4, 8)
        self.up_bias, self.down_bias = shaped(3, 4), shaped(3, 8)
        self.vector, self.by_row = shaped(4), shaped(2 * ROWS, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        seen = [] if self.exchange else [chosen.clone()]
        out = self.form(self, x, chosen)
        if isinstance(out, tuple):
            out, *more = out
            seen += more
        out = out.view(-1, 2, 8) * weights[:, :, None]
        return (self.leave(x + out.sum(1)), *seen)


def times(matrices: Tensor, rows: Tensor) -> Tensor:
    """`[rows, n, m]` times `[rows, m]`."""
    return torch.bmm(matrices, rows[:, :, None])[:, :, 0]


def hidden(m: Mixture, x: Tensor, numbers: Tensor) -> Tensor:
    """The units of each row's expert."""
    return F.gelu(times(m.up[numbers], x.repeat_interleave(2, 0)))


def between(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A form that does something to units before they are read."""

    def form(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
        numbers = chosen.reshape(-1)
        return times(m.down[numbers], change(m, hidden(m, x, numbers), numbers))

    return form


def then(other: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A form that reads units with matrices that other numbers choose."""

    def form(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
        units = hidden(m, x, chosen.reshape(-1))
        return times(m.down[other(m, x, chosen)], units)

    return form


def in_two_axes(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    units = F.silu(m.up[chosen] @ x[:, None, :, None]) * (m.gate[chosen] @ x[:, None, :, None])
    return (m.down[chosen] @ units).squeeze(-1)


def by_einsum(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    units = torch.einsum("tknd,tkd->tkn", m.up[chosen], x[:, None].expand(-1, 2, -1)).relu()
    return torch.einsum("tkdn,tkn->tkd", m.down[chosen], units)


def by_sums(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    units = (m.up[chosen] * x[:, None, None, :]).sum(-1) + m.up_bias[chosen]
    return (m.down[chosen] * units.tanh()[:, :, None, :]).sum(-1) + m.down_bias[chosen]


def by_gather(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1, 1, 1)
    units = times(m.up.gather(0, numbers.expand(-1, 4, 8)), x.repeat_interleave(2, 0))
    return times(m.down.gather(0, numbers.expand(-1, 8, 4)), units.relu())


def by_embedding(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    up = F.embedding(chosen, m.up.flatten(1)).view(-1, 4, 8)
    units = times(up, x.repeat_interleave(2, 0)) + F.embedding(chosen.reshape(-1), m.up_bias)
    return times(m.down.index_select(0, chosen.reshape(-1).int()), units.relu())


def turned(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    units = torch.bmm(x.repeat_interleave(2, 0)[:, None], m.up.transpose(1, 2)[numbers])
    down = m.down.transpose(1, 2).index_select(0, numbers)
    return torch.bmm(units.relu(), down).squeeze(1)


def along_another_axis(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    up = m.up.permute(1, 0, 2)[:, numbers].transpose(0, 1)
    units = times(up, x.repeat_interleave(2, 0)).relu()
    return times(m.down.index_select(0, numbers), units)


def counted_from_the_end(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    def places() -> Tensor:
        given = (chosen - 3).expand(chosen.shape).reshape(-1).unsqueeze(-1).select(-1, 0)
        return torch.where(given < 0, given + 3, given)

    units = times(m.up[places()], x.repeat_interleave(2, 0)).relu()
    return times(m.down[places()], units)


def with_both_in_one(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    both = times(torch.cat([m.gate, m.up], 1)[numbers], x.repeat_interleave(2, 0))
    first, second = both.chunk(2, -1)
    return times(m.down[numbers], F.silu(first) * second)


def with_a_gate(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    both = times(torch.cat([m.gate, m.up], 1)[numbers], x.repeat_interleave(2, 0))
    return times(m.down[numbers], F.glu(both))


def as_transformers_does(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    out = torch.bmm(m.up[numbers], x.repeat_interleave(2, 0).unsqueeze(-1)).squeeze(-1)
    out.add_(m.up_bias[numbers])
    out = torch.bmm(m.down[numbers], out.relu().unsqueeze(-1)).squeeze(-1)
    out.add_(m.down_bias[numbers])
    return out


def the_best_alone(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    units = times(m.up[chosen[:, 0]], x).relu()
    return times(m.down[chosen.select(1, 0)], units).repeat_interleave(2, 0)


def with_others_biases(m: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    numbers = chosen.reshape(-1)
    units = hidden(m, x, numbers) + m.up_bias.roll(1, 0)[numbers]
    return times(m.down[numbers], units)


FREE: dict[str, Callable[..., Any]] = {
    "products": between(lambda m, units, _: units),
    "biases": between(lambda m, units, numbers: (units + m.up_bias[numbers]).relu()),
    "halves of an axis": with_both_in_one,
    "a gate of two halves": with_a_gate,
    "two axes of rows": in_two_axes,
    "einsum": by_einsum,
    "sums of products": by_sums,
    "gather": by_gather,
    "embedding": by_embedding,
    "turned matrices": turned,
    "experts along another axis": along_another_axis,
    "numbers computed twice in the same way": counted_from_the_end,
    "written in place": as_transformers_does,
    "one for each row": the_best_alone,
    "biases of other experts": with_others_biases,
    "scaled by a norm": between(
        lambda m, units, _: units * torch.rsqrt(units.square().mean(-1, keepdim=True) + 1e-5)
    ),
    "a number for each row": between(lambda m, units, _: units * units.amax(-1, keepdim=True)),
    "the numbers are seen": lambda m, x, chosen: (in_two_axes(m, x, chosen), chosen),
    "a sum over units is seen": lambda m, x, chosen: (
        in_two_axes(m, x, chosen),
        hidden(m, x, chosen.reshape(-1)).sum(-1),
    ),
    "written to after it was read": lambda m, x, chosen: (
        in_two_axes(m, x, chosen),
        chosen.zero_(),
    ),
}

HELD: dict[str, Callable[..., Any]] = {
    "a sum over rows": between(lambda m, units, _: units + units.sum(0)),
    "a sum over rows, seen": lambda m, x, chosen: (
        in_two_axes(m, x, chosen),
        hidden(m, x, chosen.reshape(-1)).sum(0),
    ),
    "a running sum over rows": between(lambda m, units, _: units.cumsum(0)),
    "rows turned round": between(lambda m, units, _: units.flip(0)),
    "rows moved by one": between(lambda m, units, _: units + units.roll(1, 0)),
    "rows exchanged": between(lambda m, units, _: units[torch.arange(len(units)).flip(0)]),
    "pairs exchanged": between(lambda m, units, _: units.view(-1, 2, 4).flip(1).reshape(-1, 4)),
    "axes of rows exchanged": between(
        lambda m, units, _: units.view(-1, 2, 4).transpose(0, 1).reshape(-1, 4)
    ),
    "some rows alone": between(lambda m, units, _: torch.cat([units[:4] * m.vector, units[4:]])),
    "every other row": between(lambda m, units, _: units[::2].repeat_interleave(2, 0)),
    "a vector that all meet": between(lambda m, units, _: units * m.vector),
    "a vector for each row": between(lambda m, units, _: units * m.by_row),
    "an average of experts": between(lambda m, units, n: units * m.up_bias.mean(0)),
    "a mask by row and unit": between(
        lambda m, units, _: units.masked_fill(going_round(len(units), 4), 0.5)
    ),
    "rows meet each other": between(lambda m, units, _: units @ (units.T @ units)),
    "all pairs of rows": between(lambda m, units, _: (units[None] * units[:, None]).sum(1)),
    "softmax over rows": between(lambda m, units, _: units.softmax(0)),
    "units and rows in one axis": between(lambda m, units, _: units.flatten().roll(1).view(-1, 4)),
    "one row written": between(lambda m, units, _: written(units, 0, m.vector)),
    "one unit written": between(lambda m, units, _: written(units.T, 1, 1.0).T),
    "some rows of other experts": between(
        lambda m, units, numbers: torch.where(
            torch.arange(len(units))[:, None] > 3, units, units + m.up_bias[numbers.flip(0)]
        )
    ),
    "biases of other rows": between(lambda m, units, n: units + m.up_bias[n.roll(1)]),
    "biases turned round": between(lambda m, units, n: units + m.up_bias[n].flip(0)),
    "biases of numbers in another order": between(
        lambda m, units, n: units + m.up_bias[n.view(-1, 2).T.reshape(-1)]
    ),
    "biases at exchanged axes": lambda m, x, chosen: times(
        m.down[chosen.reshape(-1)],
        (
            hidden(m, x, chosen.reshape(-1)).view(3, 6, 4)
            + m.up_bias[chosen.view(6, 3)].mT.mT.transpose(0, 1)
        ).reshape(-1, 4),
    ),
    "units of a table by rank": between(lambda m, units, _: units.sort(-1)[0]),
    "the largest unit is seen": lambda m, x, chosen: (
        in_two_axes(m, x, chosen),
        hidden(m, x, chosen.reshape(-1)).argmax(-1),
    ),
    "units are seen": lambda m, x, chosen: (
        in_two_axes(m, x, chosen),
        hidden(m, x, chosen.reshape(-1)),
    ),
    "the other expert": then(lambda m, x, chosen: chosen.flip(1).reshape(-1)),
    "the next expert": then(lambda m, x, chosen: (chosen.reshape(-1) + 1) % 3),
    "clamped": then(lambda m, x, chosen: chosen.reshape(-1).clamp(max=1)),
    "in another order": then(lambda m, x, chosen: chosen.T.reshape(-1)),
    "the best twice": then(lambda m, x, chosen: chosen[:, :1].expand(-1, 2).reshape(-1)),
    "another choice": then(lambda m, x, chosen: m.router(-x).topk(2)[1].reshape(-1)),
    "the worst": then(lambda m, x, chosen: m.router(x).topk(2, largest=False)[1].reshape(-1)),
    "sorted": then(lambda m, x, chosen: chosen.reshape(-1).sort()[0]),
    "drawn anew": then(lambda m, x, chosen: (chosen.reshape(-1) * 7 + 1).remainder(3)),
    "written to in between": then(lambda m, x, chosen: chosen.add_(1).remainder_(3).reshape(-1)),
    "a copy written to": then(lambda m, x, chosen: written(chosen, 0, 1).reshape(-1)),
    "an alias written to": then(lambda m, x, chosen: by_alias(chosen).reshape(-1)),
}


def going_round(rows: int, units: int) -> Tensor:
    """A mask of two units in each row, as often of each unit."""
    steps = torch.arange(rows)[:, None] - torch.arange(units)
    return steps.remainder(units) < 2


def written(tensor: Tensor, at: int, value: Any) -> Tensor:
    """A copy in which one row is overwritten."""
    copy = tensor.clone()
    copy[at] = value
    return copy


def by_alias(chosen: Tensor) -> Tensor:
    """The same tensor, after something that shares its memory was written to."""
    chosen.detach().view(-1)[1:].add_(1).remainder_(3)
    return chosen


@pytest.mark.parametrize("name", FREE)
def test_units_are_free_for_each_expert(name: str) -> None:
    assert sound(FREE[name]).log10_order() == pytest.approx(EACH)


@pytest.mark.parametrize("name", HELD)
def test_units_of_several_rows_are_in_one_order(name: str) -> None:
    assert sound(HELD[name]).log10_order() < ALIKE + 0.1


def test_experts_change_places_with_their_units() -> None:
    symmetry = sound(FREE["products"], exchange=True)
    assert symmetry.log10_order() == pytest.approx(EACH + f(3))


def sound(form: Callable[..., Any], exchange: bool = False) -> fxrebasin.Symmetry:
    torch.manual_seed(0)
    model = Mixture(form, exchange).eval()
    symmetry = fxrebasin.analyze(model, (torch.randn(ROWS, 5),))
    assert not symmetry.unknown_operators
    fresh = 3 * torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1))
    return assert_group_is_sound(model, (fresh,), symmetry=symmetry)
