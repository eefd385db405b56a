"""Packed sequences, sparse matrices, identities, ranks, writes by index, distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.support.structures.lookups import case
from tests.support.structures.meetings import linear
from tests.support.structures.table import SEQUENCE, VECTOR, f, floats, ids, shaped, structure

ENTER_LEAVE = {"a": lambda: linear(3, 8), "c": lambda: linear(8, 2)}

# Sequences of several lengths -----------------------------------------------------------------


@structure(f(6, 5), ids(9, 2, 4), name="packed sequences")
class Packed(nn.Module):
    """The last state of a recurrent layer over sequences of two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(9, 6), nn.GRU(6, 5, batch_first=True)
        self.leave = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x), torch.tensor([4, 2]), batch_first=True)
        return self.leave(self.inner(packed)[1][-1])


@structure(f(6, 5), floats(4, 3, 3), name="packed sequences, padded again")
class PaddedAgain(nn.Module):
    """All states, with time as the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(3, 6), nn.GRU(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.enter(x), torch.tensor([4, 2, 1]))
        return self.leave(pad_packed_sequence(self.inner(packed)[0], padding_value=0.5)[0])


@structure(f(6), ids(9, 2, 4), name="an embedding with a largest norm")
class LargestNorm(nn.Module):
    """Rows that are read are scaled down in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.leave = nn.Embedding(9, 6, max_norm=1.0), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.embed(x).relu())


# Matrices that are constants ------------------------------------------------------------------

GRAPH = torch.eye(4) + torch.diag(torch.tensor([1.0, 0.5, 2.0]), 1)

for _name, _way in (
    ("torch.sparse.mm", torch.sparse.mm),
    ("an operator", lambda m, h: m @ h),
    ("addmm", lambda m, h: torch.sparse.addmm(h, m, h)),
):
    case(
        f"a sparse graph by {_name}",
        f(8),
        lambda m, x, way=_way: m.c(way(m.graph.to_sparse(), m.a(x).relu())),
    )(**ENTER_LEAVE, graph=GRAPH.clone)


def transformed(m: Any, x: Tensor, fixed: Callable[[int], Tensor]) -> Tensor:
    """PointNet's T-Net: a matrix of its own for each input, near a constant one."""
    h = m.b(m.a(x).relu())
    own = m.t(m.a(x).relu()).view(-1, 6, 6) + fixed(6)
    return m.d((h[:, None] @ own)[:, 0].relu())


TRANSFORMED = {
    "a": lambda: linear(3, 8),
    "b": lambda: linear(8, 6),
    "t": lambda: linear(8, 36),
    "d": lambda: linear(6, 2),
}
for _name, _order, _fixed in (
    ("the identity", f(8, 6), torch.eye),
    ("a mask of all others", f(8, 6), lambda n: 1.0 - torch.eye(n)),
    ("a multiple of it", f(8, 6), lambda n: -2.5 * torch.eye(n) + 0.5),
    ("nothing", f(8, 6, 6), lambda n: torch.zeros(n, n)),
    ("a shift", f(8), lambda n: torch.eye(n).roll(1, 0)),
    ("a triangle", f(8), lambda n: torch.ones(n, n).tril()),
):
    case(f"a matrix near {_name}", _order, lambda m, x, fixed=_fixed: transformed(m, x, fixed))(
        **TRANSFORMED
    )

# Ranks, counts, and writes by index -----------------------------------------------------------

STEPS = torch.tensor([-0.5, 0.0, 0.5])

for _name, _order, _run in (
    ("sorted units", f(8), lambda m, h: h.sort(-1).values),
    ("sorted units, backwards", f(8), lambda m, h: h.sort(dim=1, descending=True)[0]),
    ("units in the order of others", 0.0, lambda m, h: h.gather(1, (2 * h).argsort(1))),
    ("the median and the units", f(8), lambda m, h: h - h.median()),
    ("buckets", f(8), lambda m, h: torch.bucketize(h, STEPS) * h),
    ("sorted boundaries", f(8), lambda m, h: torch.searchsorted(STEPS, h.detach()) + h),
    ("index_add of a permutation", f(8), lambda m, h: add_at(h, torch.arange(7, -1, -1))),
    ("index_copy of a permutation", f(8), lambda m, h: copy_at(h, torch.tensor([7, *range(7)]))),
    ("scatter of a permutation", f(8), lambda m, h: scattered(h, torch.arange(8).roll(3))),
    ("index_put of two halves", f(4, 4), lambda m, h: woven(h)),
    ("one number in some places", f(6), lambda m, h: filled(h, [0, 0, 1])),
    ("one number added in some places", 0.0, lambda m, h: filled(h, [0, 0, 1], True)),
    ("a mean by index_reduce", f(8), lambda m, h: reduced(h)),
    ("distances", f(8), lambda m, h: torch.cdist(h, 2 * h, 1.0).mean() + h),
    ("out=", f(8), lambda m, h: torch.add(h, h, out=torch.empty_like(h))),
    ("foreach", f(8), lambda m, h: torch._foreach_mul([h], [h.exp()])[0]),
):
    case(_name, _order, lambda m, x, run=_run: m.c(run(m, m.a(x).relu())), VECTOR)(**ENTER_LEAVE)


def add_at(h: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(h).index_add(1, index, h)


def copy_at(h: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(h).index_copy(1, index, h)


def scattered(h: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(h).scatter(1, index.expand(h.shape), h)


def woven(h: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    out[:, torch.arange(0, 8, 2)] = h[:, :4]
    out[:, torch.arange(1, 8, 2)] = h[:, 4:]
    return out


def filled(h: Tensor, places: list[int], added: bool = False) -> Tensor:
    return torch.ops.aten.index_put(h, [None, torch.tensor(places)], h.new_tensor(0.5), added)


def reduced(h: Tensor) -> Tensor:
    index = torch.tensor([0, 0, 1, 2])
    return torch.zeros_like(h).index_reduce(0, index, h, "mean", include_self=False)


# Distributions, whose arguments are checked (torch._dynamo turns the checks off for all) --------

for _name, _order, _of in (
    (
        "a normal distribution",
        f(8, 8),
        lambda m, h: distributions.Normal(h, F.softplus(h), validate_args=True).mean,
    ),
    (
        "its entropy",
        f(8, 8),
        lambda m, h: distributions.Normal(h, h.exp(), validate_args=True).entropy(),
    ),
    (
        "a diagonal covariance",
        f(8),
        lambda m, h: (
            distributions.MultivariateNormal(
                h, scale_tril=torch.diag_embed(h.exp()), validate_args=True
            ).variance
        ),
    ),
):
    case(_name, _order, lambda m, x, of=_of: m.c(of(m, m.b(m.a(x).relu()))), SEQUENCE)(
        **ENTER_LEAVE, b=lambda: linear(8, 8), unread=lambda: shaped(3)
    )


# Constants in which some numbers are equal -------------------------------------------------------

_SIGNS = torch.tensor([1.0, -1.0, -0.0, 0.0, -1.0, 1.0, 1.0, 1.0])
_MASK = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
_LEVELS = torch.tensor([0.5, 0.5, 0.25, 0.5, 2.0, 0.25, 0.5, float("nan")])
_GRID = torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 3.0]])[:, [0, 1, 2, 0, 1, 2, 0, 1]]

for _name, _order, _meet in (
    ("signs of a constant", f(4, 2), lambda h: h.copysign(_SIGNS)),
    ("a mask", f(5, 3), lambda h: h * _MASK),
    ("a mask that chooses", f(5, 3), lambda h: torch.where(_MASK > 0, h, h.sin())),
    ("a mask and levels", f(3), lambda h: (h * _MASK).add(_LEVELS.nan_to_num(9.0))),
    ("one number that is none", f(4, 2), lambda h: (h + _LEVELS).nan_to_num(1.0)),
    ("a mask in the other order", f(3, 3, 2), lambda h: h * _MASK + h.sin() * _MASK.flip(0)),
    ("a grid of constants by sign", f(5, 3), lambda h: (h[:, None] * _GRID).relu().sum(1)),
    ("running sums of a mask", f(3, 2), lambda h: h * _MASK.cumsum(0)),
    ("running sums over a mask", 0.0, lambda h: (h * _MASK).cumsum(-1)),
):
    case(_name, _order, lambda m, x, meet=_meet: m.c(meet(m.a(x))))(**ENTER_LEAVE)
