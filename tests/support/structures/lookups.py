"""Rows looked up by numbers computed per unit, and movements across positions and units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.meetings import Made, linear
from tests.support.structures.table import VECTOR, f, floats, shaped, structure


def case(
    name: str, order: float, run: Callable[[Any, Tensor], Tensor], *inputs: Callable[[], Tensor]
) -> Callable[..., None]:
    """Add a structure of the parts that the second call names; each is made anew."""

    def with_parts(**parts: Callable[[], nn.Module | Tensor]) -> None:
        def build() -> nn.Module:
            return Made(run, **{key: make() for key, make in parts.items()})

        structure(order, *(inputs or (VECTOR,)), name=name)(build)

    return with_parts


# Rows looked up per unit ----------------------------------------------------------------------


def level(h: Tensor) -> Tensor:
    """0, 1 or 2, for each unit."""
    return (h > 0).long() + (h > 0.5).long()


PER_UNIT: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "indexing": lambda table, i: table[i],
    "embedding": lambda table, i: F.embedding(i, table),
    "index_select": lambda table, i: table.index_select(0, i.flatten()).view(*i.shape, 5),
    "the other way round": lambda table, i: table[i.t()].transpose(0, 1),
    "indexing behind a slice": lambda table, i: table.t()[:, i].permute(1, 2, 0),
    "one_hot": lambda table, i: F.one_hot(i, 3).to(table.dtype) @ table,
    "gather": lambda table, i: table.expand(len(i), 3, 5).gather(1, i[..., None].expand(-1, -1, 5)),
    "take_along_dim": lambda table, i: torch.take_along_dim(table[None], i[..., None], 1),
}

for _way, _rows in PER_UNIT.items():
    _order = f(8, 5)

    def _looked_up(m: Any, x: Tensor, rows: Callable[[Tensor, Tensor], Tensor] = _rows) -> Tensor:
        h = m.a(x)
        return m.c(h.relu()) + torch.einsum("nhf,hf->n", rows(m.t, level(h)), m.w)[:, None]

    case(f"rows looked up per unit by {_way}", _order, _looked_up)(
        a=lambda: linear(3, 8),
        c=lambda: linear(8, 2),
        t=lambda: shaped(3, 5),
        w=lambda: shaped(8, 5),
    )

case(
    "rows looked up in a table of each unit",
    f(8),
    lambda m, x: m.c(m.t.expand(len(x), 8, 3).gather(2, level(m.a(x))[..., None])[..., 0]),
)(a=lambda: linear(3, 8), c=lambda: linear(8, 2), t=lambda: shaped(8, 3))

# Orders that operators leave open, and unusual arguments ---------------------------------------

ENTER_LEAVE = {"a": lambda: linear(3, 8), "c": lambda: linear(8, 2)}
HALF = {"a": lambda: linear(3, 8), "d": lambda: linear(4, 2)}

case("largest in any order", 0.0, lambda m, x: m.d(m.a(x).topk(4, sorted=False)[0]))(**HALF)
case("largest by rank", f(8), lambda m, x: m.d(m.a(x).topk(4)[0]))(**HALF)
case(
    "any of no axes",
    f(8),
    lambda m, x: m.c(m.a(x)) + m.d(torch.any(m.a(x) > 0, dim=()).to(x.dtype)),
)(**ENTER_LEAVE, d=lambda: linear(8, 2))
case(
    "all of no axes, axes kept",
    f(8),
    lambda m, x: m.c(m.a(x)) + m.d(torch.all(m.a(x) > 0, dim=(), keepdim=True).to(x.dtype)),
)(**ENTER_LEAVE, d=lambda: linear(8, 2))

# Movements across positions and units ---------------------------------------------------------

for _name, _order, _move in (
    ("roll of everything", f(5, 3), lambda h: h.roll(3)),
    ("roll of everything back", f(5, 3), lambda h: h.roll(-3)),
    ("roll by whole rows", f(8), lambda h: h.roll(16)),
    ("roll there and back", f(8), lambda h: h.roll(3).roll(-3)),
    ("rows of half the length", f(2), lambda h: h.reshape(8, 4).t()),
    ("every third of all", f(3, 3, 2), lambda h: h.reshape(-1)[::3][:8]),
    ("turned over as a whole", f(8), lambda h: h.reshape(-1).flip(0).view(h.shape)),
):
    case(_name, _order, lambda m, x, move=_move: m.c(move(m.a(x).relu())))(**ENTER_LEAVE)

TOKENS = floats(2, 5, 3)
FIVE = {"a": lambda: linear(3, 5), "c": lambda: linear(1, 2)}

for _name, _order, _move in (
    ("diagonal of tokens and units", 0.0, lambda h: h.diagonal(dim1=1, dim2=2)),
    ("a diagonal of tokens and units", 0.0, lambda h: h.diagonal(1, 1, 2)),
    ("a few of both", 0.0, lambda h: h.flatten(1)[:, torch.tensor([0, 6, 12, 18, 24, 0])]),
    ("index_select of both", 0.0, lambda h: h.flatten(1).index_select(1, torch.arange(0, 25, 6))),
    ("units of the first token", f(5), lambda h: h.flatten(1).index_select(1, torch.arange(5))),
    ("windows over both", f(5), lambda h: h.flatten(1).unfold(1, 5, 5)[:, 1]),
    ("windows across both", f(2, 2), lambda h: h.flatten(1).unfold(1, 4, 3)[:, 1]),
    ("a pair of neighbours", 0.0, lambda h: torch.stack([h[:, 0, 0], h[:, 1, 1]], -1)),
):
    case(_name, _order, lambda m, x, move=_move: m.c(move(m.a(x)).amax(-1, True)), TOKENS)(**FIVE)

case("roll of all elements of a matrix", f(8), lambda m, x: m.c(x @ m.p.roll(3)))(
    p=lambda: shaped(3, 8), c=lambda: linear(8, 2)
)
case(
    "roll of all elements beside what columns have",
    f(8),
    lambda m, x: m.c((x @ (m.p / m.p.norm(dim=0)).roll(3)).tanh()),
)(p=lambda: shaped(3, 8), c=lambda: linear(8, 2))

# One of several, at several positions ----------------------------------------------------------


def _last_head(m: Any, x: Tensor) -> Tensor:
    """The last of four heads, for each of two units, beside the sum of all."""
    heads = m.a(x).view(-1, 4, 2).pow(2).sum(-1)
    pairs = (heads[..., None] * m.b(x)[:, None]).flatten(1)
    return m.c(pairs.chunk(3, 1)[2]) + heads.sum(1, keepdim=True)


def _columns_apart(m: Any, x: Tensor) -> Tensor:
    """The columns of a product of two vectors, one by one, and then the product as a whole."""
    product = m.p[:, None] * m.q
    one, two = product.chunk(2, 1)
    return m.a(x) @ (one - two) + m.a(x) @ product @ m.r


case("one head of several, at several positions", f(3, 2, 2, 2, 2, 2), _last_head)(
    a=lambda: linear(3, 8), b=lambda: linear(3, 2), c=lambda: linear(2, 2)
)
case("one column of several, at several positions", f(6), _columns_apart)(
    a=lambda: linear(3, 6), p=lambda: shaped(6), q=lambda: shaped(2), r=lambda: shaped(2, 2)
)

# The same inputs in other orders ----------------------------------------------------------------

_ORDERS = torch.tensor([[0, 1, 2], [1, 0, 2]])

case("orders of inputs as channels", 0.0, lambda m, x: F.conv1d(x[:, _ORDERS], m.w, m.b))(
    w=lambda: shaped(4, 2, 2), b=lambda: shaped(4)
)
case(
    "orders of inputs as channels that are told apart by no position",
    f(2),
    lambda m, x: F.conv1d(x[:, _ORDERS].sin().sum(-1, keepdim=True) * m.s, m.w, m.b),
)(w=lambda: shaped(4, 2, 1), b=lambda: shaped(4), s=lambda: shaped(2, 1))

# Positions that several indices choose together, by data -----------------------------------------


def _end(x: Tensor) -> Tensor:
    """A token of each sequence."""
    return (x.sum(-1) > 0).sum(-1).clamp(max=x.shape[1] - 1)


def _given(h: Tensor, indices: Any, value: Any) -> Tensor:
    h = h * 1
    h[indices] = value
    return h


ALL = slice(None)

for _name, _order, _move in (
    ("token and batch", f(8), lambda h, n, end: h[n, end]),
    ("batch and token behind units", f(8), lambda h, n, end: h.permute(2, 0, 1)[:, n, end].t()),
    ("batch and token around units", f(8), lambda h, n, end: h.transpose(1, 2)[n, :, end]),
    ("token and batch around units", f(8), lambda h, n, end: h.permute(1, 2, 0)[end, :, n]),
    ("every token with every sequence", f(8), lambda h, n, end: h[n[:, None], end]),
    ("heads", f(2, 4, 4), lambda h, n, end: h.unflatten(-1, (2, 4))[n, end].amax(-1).tile(4)),
    ("token and unit", 0.0, lambda h, n, end: h[:, end, end][..., None] * h[:, 0]),
    ("written", f(8), lambda h, n, end: _given(h, (n, end), h[:, 0].tanh())),
    ("written around units", f(8), lambda h, n, end: _given(
        h.transpose(1, 2), (n, ALL, end), h[:, 0].tanh()).transpose(1, 2)),
    ("written to some units", f(4, 4), lambda h, n, end: _given(h, (n, end, slice(4)), 0.0)),
    ("written to units", 0.0, lambda h, n, end: _given(h, (n, end, n), 1.0)),
):  # fmt: skip

    def _together(m: Any, x: Tensor, move: Callable[..., Tensor] = _move) -> Tensor:
        chosen: Tensor = m.c(move(m.a(x), torch.arange(len(x)), _end(x)))
        return chosen

    case(f"chosen together: {_name}", _order, _together, TOKENS)(**ENTER_LEAVE)

# Parameters read several times by a constant index --------------------------------------------

for _name, _count, _index in (
    ("toeplitz", 15, torch.arange(8)[:, None] - torch.arange(8) + 7),
    ("circulant", 8, (torch.arange(8)[:, None] - torch.arange(8)) % 8),
    ("hankel", 15, torch.arange(8)[:, None] + torch.arange(8)),
):
    case(
        f"a {_name} matrix by index",
        0.0,
        lambda m, x: m.c(torch.relu(F.linear(x, m.w[m.i]))),
        floats(5, 8),
    )(
        w=lambda count=_count: shaped(count),
        i=lambda index=_index: index.clone(),
        c=lambda: linear(8, 2),
    )
case(
    "a scale for each pair of units",
    f(2, 2, 2, 2, 4),
    lambda m, x: m.c(m.a(x) * m.w[m.i]),
)(
    a=lambda: linear(3, 8),
    c=lambda: linear(8, 2),
    w=lambda: shaped(4),
    i=lambda: torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]),
)
