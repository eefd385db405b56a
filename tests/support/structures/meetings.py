"""Labels that together say more than each by itself: sets, tuples, one set in another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.table import SEQUENCE, VECTOR, f, floats, shaped, structure

TOKENS = 5


class Made(nn.Module):
    """A function of its input and of parts, given by name: modules, parameters, buffers."""

    def __init__(self, run: Callable[[Made, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def linear(before: int, after: int) -> nn.Linear:
    return nn.Linear(before, after)


# Positions beside units ------------------------------------------------------------------------


@structure(0.0, floats(4, 6))
def input_stacked_on_units_and_summed() -> nn.Module:
    return Made(
        lambda m, x: m.o(torch.stack([x, torch.relu(m.a(x))]).sum(0)),
        a=linear(6, 6),
        o=linear(6, 2),
    )


@structure(0.0, floats(4, 6))
def jumping_knowledge_with_the_input() -> nn.Module:
    return Made(
        lambda m, x: m.o(torch.stack([x, torch.relu(m.a(x))], -1).amax(-1)),
        a=linear(6, 6),
        o=linear(6, 2),
    )


@structure(0.0, floats(4, 3, 2))
def input_stacked_on_elements_summed_and_reduced() -> nn.Module:
    return Made(
        lambda m, x: torch.stack([x, m.p.expand(len(x), 3, 2)]).sum(0).flatten(1).amax(1),
        p=shaped(3, 2),
    )


@structure(f(6), VECTOR)
def jumping_knowledge() -> nn.Module:
    return Made(
        lambda m, x: m.o(torch.stack([m.a(x).relu(), m.b(x).tanh(), m.c(x)], 2).amax(2)),
        a=linear(3, 6),
        b=linear(3, 6),
        c=linear(3, 6),
        o=linear(6, 2),
    )


def _with_positions(m: Made, x: Tensor) -> Tensor:
    return torch.cat([m.a(x), m.p.expand(len(x), -1, -1)], -1)


@structure(f(6, 3, 8), SEQUENCE)
def positions_concatenated_to_features() -> nn.Module:
    return Made(
        lambda m, x: m.o(m.m(_with_positions(m, x)).relu().mean(1)),
        a=linear(3, 6),
        p=shaped(1, TOKENS, 3),
        m=linear(9, 8),
        o=linear(8, 2),
    )


@structure(f(6, 3, 8, 8), SEQUENCE)
def attention_with_positions_concatenated() -> nn.Module:
    return Made(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(*m.m(_with_positions(m, x)).chunk(3, -1)).mean(1)
        ),
        a=linear(3, 6),
        p=shaped(1, TOKENS, 3),
        m=linear(9, 24),
        o=linear(8, 2),
    )


@structure(f(6, 3, 8), SEQUENCE)
def tokens_mixed_with_positions_concatenated() -> nn.Module:
    return Made(
        lambda m, x: m.o(m.m(_with_positions(m, x).transpose(1, 2)).relu().mean(2)),
        a=linear(3, 6),
        p=shaped(1, TOKENS, 3),
        m=linear(TOKENS, 8),
        o=linear(9, 2),
    )


def _half_mixed(m: Made, x: Tensor) -> Tensor:
    u, v = m.a(x).chunk(2, -1)
    return m.o(m.m(torch.cat([u, m.w @ v], -1).transpose(1, 2)).mean(2))


@structure(2 * f(3) + f(8), SEQUENCE)
def half_of_the_channels_mixed_over_tokens() -> nn.Module:
    return Made(
        _half_mixed,
        a=linear(3, 6),
        w=shaped(TOKENS, TOKENS),
        m=linear(TOKENS, 8),
        o=linear(6, 2),
    )


# Tokens of the second kind have no positions; ReLU and a mean leave each channel its own order.
@structure(f(6) + 6 * f(2), SEQUENCE)
def tokens_appended_and_averaged() -> nn.Module:
    return Made(
        lambda m, x: m.o(torch.cat([m.a(x), m.p.expand(len(x), -1, -1)], 1).relu().mean(1)),
        a=linear(3, 6),
        p=shaped(1, 2, 6),
        o=linear(6, 2),
    )


def _padded(m: Made, x: Tensor) -> Tensor:
    z = x.new_zeros(len(x), 2, 7)
    z[..., 1:5] = m.a(x)
    return m.m(m.n(z))


@structure(0.0, floats(3, 2, 3))
def zeros_around_units_that_are_mixed_over_tokens() -> nn.Module:
    return Made(_padded, a=linear(3, 4), n=nn.LayerNorm((2, 7)), m=nn.Conv1d(2, 2, 3))


# The same set in another order -----------------------------------------------------------------


@structure(f(8), floats(2, 6, 3))
def convolution_over_a_ring() -> nn.Module:
    return Made(
        lambda m, x: torch.einsum("ntkc,kco->nto", torch.relu(m.a(x))[:, m.ring], m.w),
        a=linear(3, 8),
        w=shaped(3, 8, 5),
        ring=(torch.arange(6)[:, None] + torch.arange(3)) % 6,
    )


def _over_a_group(m: Made, x: Tensor) -> Tensor:
    h = torch.relu(torch.einsum("nx,gcx->ngc", x, m.a))
    difference = (torch.arange(4)[:, None] - torch.arange(4)) % 4
    return torch.relu(torch.einsum("ngc,hgcd->nhd", h, m.w[difference])).flatten(1) @ m.o


# The elements of the group itself can only be moved all together.
@structure(f(6, 5), VECTOR)
def convolution_over_a_cyclic_group() -> nn.Module:
    return Made(_over_a_group, a=shaped(4, 6, 3), w=shaped(4, 6, 5), o=shaped(20, 2))


@structure(0.0, VECTOR)
def circulant_matrix_by_rolls() -> nn.Module:
    return Made(
        lambda m, x: m.o(F.linear(m.a(x), torch.stack([m.w.roll(i) for i in range(8)])).relu()),
        a=linear(3, 8),
        w=shaped(8),
        o=linear(8, 2),
    )


def _both_orders(m: Made, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.o(torch.cat([h, h.flip(-1)]))


# Units at both ends of the row move together, which no permutation of units alone says.
@structure(0.0, VECTOR)
def rows_with_the_units_reversed() -> nn.Module:
    return Made(_both_orders, a=linear(3, 8), o=linear(8, 2))


@structure(f(6), VECTOR)
def units_beside_the_units_reversed() -> nn.Module:
    def run(m: Made, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        return m.o(torch.cat([h, h.flip(-1)], -1))

    return Made(run, a=linear(3, 6), o=linear(12, 2))


@structure(f(5), VECTOR)
def one_unit_added_twice() -> nn.Module:
    return Made(
        lambda m, x: m.o(m.a(x).square()[:, [0, 0, 1, 2, 3, 4, 5]].sum(-1, keepdim=True)),
        a=linear(3, 6),
        o=linear(1, 2),
    )


def _three_tables(m: Made, x: Tensor) -> Tensor:
    third = torch.cat([m.w, m.w.flip(0)])
    h = x[:, :1] + m.u.repeat_interleave(2) * m.v.repeat(2) + third
    return m.o(torch.relu(h).sum(-1, keepdim=True))


# Any two of the tables can be turned round together, and none alone.
@structure(0.0, VECTOR)
def three_tables_of_which_each_two_meet_in_all_ways() -> nn.Module:
    return Made(_three_tables, u=shaped(2), v=shaped(2), w=shaped(2), o=linear(1, 2))


# Roles of elements -----------------------------------------------------------------------------


def _gated_attention(m: Made, x: Tensor) -> Tensor:
    u, v = F.silu(m.uv(x)).chunk(2, -1)
    q, k = (F.silu(m.z(x))[..., None, :] * m.g + m.b).unbind(-2)
    return m.o(u * (torch.relu(q @ k.transpose(1, 2)) ** 2 @ v))


@structure(f(8, 6), SEQUENCE)
def gated_attention_unit() -> nn.Module:
    return Made(
        _gated_attention,
        z=linear(3, 6),
        uv=linear(3, 16),
        g=shaped(2, 6),
        b=shaped(2, 6),
        o=linear(8, 2),
    )


def _repeated_and_cut(m: Made, x: Tensor) -> Tensor:
    a, b = (m.z(x).repeat(1, 2) * m.g + m.b).chunk(2, -1)
    return m.o(torch.relu(a) + torch.tanh(b))


@structure(f(6), VECTOR)
def scale_and_shift_in_two_roles() -> nn.Module:
    return Made(_repeated_and_cut, z=linear(3, 6), g=shaped(12), b=shaped(12), o=linear(6, 2))


def _first_token_edited(m: Made, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0] += 1.0
    return torch.einsum("nwu,wuo->no", h, m.w)


@structure(f(6), floats(3, 2, 3))
def one_token_written_to_and_contracted() -> nn.Module:
    return Made(_first_token_edited, a=linear(3, 6), w=shaped(2, 6, 4))


def _windows(m: Made, x: Tensor) -> Tensor:
    h = torch.einsum("nab,bac->nc", m.a(x), m.w).roll(3, 1).unfold(1, 2, 2)
    return torch.tanh(h @ m.p) @ m.o


@structure(f(6, 2, 2), floats(3, 2, 3))
def units_paired_across_windows() -> nn.Module:
    return Made(_windows, a=linear(3, 6), w=shaped(6, 2, 4), p=shaped(2, 2), o=shaped(2, 3))


# The units within a pair of hidden units follow these: exchanging them pair by pair has no name.
@structure(f(6), VECTOR)
def units_for_each_pair_of_units() -> nn.Module:
    def run(m: Made, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        pairs = torch.relu(h[:, :, None, None] * m.w + h[:, None, :, None] * m.v)
        return (pairs * m.u).sum((1, 2, 3))[:, None]

    return Made(run, a=linear(3, 6), w=shaped(6, 6, 3), v=shaped(6, 6, 3), u=shaped(6, 6, 3))


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    return torch.sigmoid((x.reshape(len(x), 4, -1) * scale[:, None]).reshape(x.shape))


# The groups that share a scale overlap: it stays, and so do its groups; 2, 4 or 2 units in each.
@structure(6 * f(2) + 3 * f(4), VECTOR)
def one_scale_for_groups_that_overlap() -> nn.Module:
    def run(m: Made, x: Tensor) -> Tensor:
        y, k = m.a(x), m.k(x)
        both = torch.cat([k, y], 1)
        return m.p(_scaled(y, m.g)) + m.q(_scaled(k, m.g)) + m.b(_scaled(both, m.g))

    return Made(
        run,
        a=linear(3, 8),
        k=linear(3, 16),
        g=shaped(4),
        p=linear(8, 2),
        q=linear(16, 2),
        b=linear(24, 2),
    )


# The input is laid out anew, twice over: each row holds other elements of it, in another order.
@structure(0.0, floats(3, 3))
def repeated_input_in_rows_of_two() -> nn.Module:
    def run(m: Made, x: Tensor) -> Tensor:
        rows = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 2)
        return ((rows * m.g) * (rows * m.b)).sum(1)

    return Made(run, g=shaped(2), b=shaped(2))
