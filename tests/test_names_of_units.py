"""Numbers that name units: codes, experts and rows that are chosen by a search along their axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.structures.meetings import Made
from tests.support.structures.table import f, shaped

Forward = Callable[[Any, Tensor], Any]

CASES: dict[str, tuple[Forward, float]] = {}


def case(*sizes: int) -> Callable[[Forward], Forward]:
    """Enter what to do with a vector of 6 units, made of 8 hidden ones; and what may be permuted.

    There are a table `e` and a table `t` of 7 rows of 6, matrices `w` of 7 experts, a `router`
    with a bias and a `bare` one without, and an output layer `o`.
    """

    def enter(run: Forward) -> Forward:
        assert run.__name__ not in CASES
        CASES[run.__name__] = (run, f(8, *sizes))
        return run

    return enter


def made(run: Forward) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return run(m, m.b(m.a(x).relu()))

    return Made(
        forward,
        a=nn.Linear(5, 8),
        b=nn.Linear(8, 6),
        o=nn.Linear(6, 3),
        router=nn.Linear(6, 7),
        bare=nn.Linear(6, 7, bias=False),
        e=shaped(7, 6),
        t=nn.Parameter(shaped(7, 6).flip(0).contiguous()),
        w=nn.Parameter(torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(3))),
        v=nn.Parameter(torch.randn(7, 4, 6, generator=torch.Generator().manual_seed(4))),
    )


def distances(x: Tensor, codes: Tensor) -> Tensor:
    return x.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * x @ codes.t()


def nearest(m: Any, x: Tensor) -> Tensor:
    return distances(x, m.e).argmin(1)


def straight_through(m: Any, x: Tensor, q: Tensor) -> Any:
    loss = F.mse_loss(q.detach(), x) + 0.25 * F.mse_loss(q, x.detach())
    return m.o(x + (q - x).detach()), loss


# Codes of a codebook: 6 units in common, 7 codes -------------------------------------------------

LOOKED_UP: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "embedding": lambda m, x: F.embedding(nearest(m, x), m.e),
    "index_select": lambda m, x: m.e.index_select(0, nearest(m, x)),
    "indexing": lambda m, x: m.e[nearest(m, x)],
    "gather": lambda m, x: m.e.gather(0, nearest(m, x)[:, None].expand(-1, 6)),
    "one_hot": lambda m, x: F.one_hot(nearest(m, x), 7).to(x.dtype) @ m.e,
    "one_hot with room": lambda m, x: F.one_hot(nearest(m, x), 8)[:, :7].to(x.dtype) @ m.e,
    "comparison": lambda m, x: (nearest(m, x)[:, None] == torch.arange(7)).to(x.dtype) @ m.e,
    "scatter_": lambda m, x: x.new_zeros(len(x), 7).scatter_(1, nearest(m, x)[:, None], 1) @ m.e,
    "scatter_add": lambda m, x: x.new_zeros(len(x), 7).scatter_add(
        1, nearest(m, x)[:, None], x.new_ones(len(x), 1)) @ m.e,
    "cdist": lambda m, x: m.e[torch.cdist(x, m.e).argmin(-1)],
    "cosine": lambda m, x: m.e[(F.normalize(x) @ F.normalize(m.e).t()).argmax(1)],
    "cosine by hand": lambda m, x: m.e[F.linear(x, m.e / m.e.norm(dim=1, keepdim=True)).argmax(1)],
    "differences": lambda m, x: m.e[(x[:, None] - m.e).square().sum(-1).argmin(1)],
    "max": lambda m, x: m.e[(-distances(x, m.e)).max(1)[1]],
    "best of two": lambda m, x: m.e[distances(x, m.e).topk(2, largest=False)[1]].mean(1),
    "embedding_bag": lambda m, x: F.embedding_bag(nearest(m, x)[:, None], m.e),
    "embedding_bag, weighted": lambda m, x: F.embedding_bag(
        nearest(m, x)[:, None], m.e, mode="sum", per_sample_weights=x.new_ones(len(x), 1)),
    "a copy, a view, a cast": lambda m, x: m.e[nearest(m, x).view(1, -1).clone().int()[0]],
}  # fmt: skip

for _name, _rows in LOOKED_UP.items():

    def _quantised(m: Any, x: Tensor, rows: Callable[..., Tensor] = _rows) -> Any:
        return straight_through(m, x, rows(m, x))

    CASES[f"codes looked up by {_name}"] = (_quantised, f(8, 6, 7))


@case(6, 7)
def codes_and_perplexity(m: Any, x: Tensor) -> Any:
    chosen = F.one_hot(nearest(m, x), 7).to(x.dtype)
    share = chosen.mean(0)
    return m.o(chosen @ m.e), torch.exp(-(share * (share + 1e-10).log()).sum())


@case(6, 7, 7)
def residual_codes_of_two_tables(m: Any, x: Tensor) -> Any:
    first = m.e[nearest(m, x)]
    return m.o(first + m.t[distances(x - first, m.t).argmin(1)])


@case(6, 7)
def one_search_two_tables(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i] * m.t[i])


# Experts: 6 units before and 6 after them -------------------------------------------------------


@case(6, 6, 7)
def weighted_rows(m: Any, x: Tensor) -> Any:
    weights, i = m.router(x).softmax(-1).topk(2)
    return m.o((weights[..., None] * m.t[i]).sum(1))


@case(6, 6, 4, 7)
def experts_with_biases(m: Any, x: Tensor) -> Any:
    weights, i = m.router(x).topk(2)
    h = torch.einsum("nd,nkde->nke", x, m.w[i]).relu()
    out = torch.einsum("nke,nked->nkd", h, m.v[i]) + m.t[i]
    return m.o((out * weights.softmax(-1)[..., None]).sum(1))


@case(6, 6, 7)
def scores_of_the_chosen(m: Any, x: Tensor) -> Any:
    scores = m.router(x)
    i = scores.argmax(-1, keepdim=True)
    return m.o(m.t[i[:, 0]] * scores.gather(1, i))


@case(6, 6, 7)
def masked_by_the_chosen(m: Any, x: Tensor) -> Any:
    scores = m.router(x)
    mask = torch.zeros_like(scores).scatter(1, scores.topk(2)[1], 1.0)
    return m.o((scores.softmax(-1) * mask) @ m.t)


@case(6, 6, 7)
def router_without_a_bias(m: Any, x: Tensor) -> Any:
    return m.o(m.t[m.bare(x).argmax(1)])


# Where the numbers get out, or may not name the units: the rows stay ------------------------------


@case()
def returned(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.e[i], i.clone()


@case(6)
def returned_in_the_end(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i]), i[:, None].clone()


@case(6)
def compared_with_one(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i] + (i == 2)[:, None])


@case(6)
def compared_backwards(m: Any, x: Tensor) -> Any:
    return m.o((nearest(m, x)[:, None] == torch.arange(7).flip(0)).to(x.dtype) @ m.e)


@case(6)
def in_bags_but_for_one(m: Any, x: Tensor) -> Any:
    return m.o(F.embedding_bag(distances(x, m.e).topk(2)[1], m.e, padding_idx=2) + x)


@case(6)
def largest_of_a_bag(m: Any, x: Tensor) -> Any:
    return m.o(F.embedding_bag(distances(x, m.e).topk(2)[1], m.e, mode="max") + x)


@case(6)
def counted(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i]), torch.bincount(i, minlength=7)


@case(6)
def multiplied(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i]) * i[:, None]


@case(6, 6)
def cast(m: Any, x: Tensor) -> Any:
    i = m.router(x).argmax(1)
    return m.o(m.t[i]) * i.to(x.dtype)[:, None]


@case(6, 6)
def shifted(m: Any, x: Tensor) -> Any:
    return m.o(m.t[(nearest(m, x) + 1) % 7])


@case(6)
def written_to(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    i[0] = 2
    return m.o(m.e[i])


@case(6)
def looked_up_in_a_constant(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i]) + torch.linspace(0, 1, 7, dtype=x.dtype)[i][:, None]


@case(6)
def looked_up_one_further(m: Any, x: Tensor) -> Any:
    i = nearest(m, x)
    return m.o(m.e[i] + torch.cat([m.e[1:], m.e[:1]])[i])


@case(6, 6)
def in_any_order(m: Any, x: Tensor) -> Any:
    rows = m.t[m.router(x).topk(2, sorted=False)[1]]
    return m.o(rows[:, 0] + 2 * rows[:, 1])


@case(6, 6)
def sorted_numbers(m: Any, x: Tensor) -> Any:
    rows = m.t[m.router(x).topk(2)[1].sort(-1)[0]]
    return m.o(rows[:, 0] + 2 * rows[:, 1])


@case(6, 6)
def two_at_once(m: Any, x: Tensor) -> Any:
    i = (m.router(x)[:, :, None] * m.bare(x)[:, None]).flatten(1).argmax(1)
    return m.o(m.t[i // 7] * m.e[i % 7])


@case(6, 6, 6)
def one_code_apart(m: Any, x: Tensor) -> Any:
    chosen = F.one_hot(m.router(x).argmax(1), 7).to(x.dtype)
    return m.o(chosen @ m.t) + chosen[:, 2:3]


# Several numbers may be equal, and the first of them is found ----------------------------------

TIED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu": lambda m, x: m.router(x).relu().argmax(1),
    "relu written": lambda m, x: m.router(x).relu_().argmax(1),
    "relu before a bare router": lambda m, x: m.bare((x - 2).relu()).argmax(1),
    "relu and a sum": lambda m, x: m.bare((x - 2).relu().sum(1, keepdim=True) * x).argmax(1),
    "cosine of zeros": lambda m, x: (
        (x - 2).relu() @ F.normalize(m.t).t()).argmax(1),
    "lengths of directions": lambda m, x: (
        F.normalize(m.t).square().sum(1) + 0 * x.sum(1, True)).round(decimals=9).argmax(1),
    "rows that are hidden": lambda m, x: (m.router(x) * (x.sum(1, True) > 0)).argmax(1),
    "clamp": lambda m, x: m.router(x).clamp(min=-1).argmin(1),
    "soft threshold": lambda m, x: (m.router(x) - m.router(x).clamp(-1, 1)).argmax(1),
    "dead zone before a bare router": lambda m, x: m.bare(x - x.clamp(-9, 9)).argmax(1),
    "comparison": lambda m, x: (m.router(x) > 0).to(x.dtype).argmax(1),
    "round": lambda m, x: m.router(x).round().argmax(1),
    "one number for all": lambda m, x: (x.new_zeros(len(x), 7) + x.sum(1, True)).argmax(1),
    "zeros": lambda m, x: (m.router(x) * 0).argmax(1),
    "saturated": lambda m, x: (1000 * m.router(x)).sigmoid().argmax(1),
    "vanished": lambda m, x: (-1000 * m.router(x).square()).exp().argmax(1),
    "least of a softmax": lambda m, x: (9999 * m.router(x)).softmax(1).argmin(1),
    "least of a negated softmax": lambda m, x: (-(9999 * m.router(x)).softmax(1)).argmax(1),
    "differences counted": lambda m, x: torch.cdist(x.round(), m.t.round(), p=0).argmin(1),
    "hidden by a mask": lambda m, x: m.router(x).masked_fill(x.sum(1, True) > 0, -9).argmax(1),
    "the largest hidden": lambda m, x: m.router(x).clone().scatter_(
        1, m.router(x).topk(5)[1], 0.0).argmax(1),
}  # fmt: skip

for _name, _search in TIED.items():

    def _tied(m: Any, x: Tensor, search: Callable[..., Tensor] = _search) -> Any:
        return m.o(m.w.sum(2)[search(m, x)] + x)

    CASES[f"tied by {_name}"] = (_tied, f(8, 6))


def test_rows_may_be_hidden_by_an_input() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.t, self.o = nn.Linear(5, 7), shaped(7, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.o(self.t[(self.router(x) * mask).argmax(1)])

    model = Masked()
    symmetry = fxrebasin.analyze(model, (torch.randn(4, 5), torch.ones(4, 1)))
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(60)[:, None] % 2).to(rows.dtype)
    assert_group_is_sound(model, (rows, mask), symmetry=symmetry)
    assert symmetry.log10_order() == pytest.approx(f(6))


def test_a_router_without_a_bias_may_be_given_zeros() -> None:
    model = Made(
        lambda m, x: m.o(m.t[m.router(x).argmax(1)]),
        router=nn.Linear(5, 7, bias=False),
        t=shaped(7, 6),
        o=nn.Linear(6, 3),
    )
    symmetry = fxrebasin.analyze(model, (torch.randn(4, 5),))
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(7))
    rows[::3] = 0
    assert_group_is_sound(model, (rows,), symmetry=symmetry)
    assert symmetry.log10_order() == pytest.approx(f(6))


@pytest.mark.parametrize("name", CASES)
def test_the_group_is_sound_and_as_large_as_on_paper(name: str) -> None:
    run, order = CASES[name]
    model = made(run)
    symmetry = fxrebasin.analyze(model, (torch.randn(4, 5),))
    fresh = torch.randn(60, 5, generator=torch.Generator().manual_seed(7))
    assert_group_is_sound(model, (fresh,), symmetry=symmetry)
    assert symmetry.log10_order() == pytest.approx(order)
    assert not symmetry.unknown_operators
