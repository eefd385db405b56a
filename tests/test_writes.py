"""Tensors that are written to in parts, and views of which not everything is read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.passes.propagate.propagate import propagate
from tests.support.oracle.sample import p, program
from tests.support.oracle.trial import Trial, analysed, incorrect
from tests.support.randomise import (
    assert_group_is_sound,
    difference,
    log10_factorial,
    outputs,
    permuted,
    randomise,
)

f = log10_factorial

Forward: TypeAlias = "Callable[[Model, Tensor], Tensor]"
CASES: dict[str, tuple[float, Forward]] = {}


class Model(nn.Module):
    """Eight hidden units, and layers and parameters that a way to use them may need."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 8)
        self.c, self.d = nn.Linear(8, 3), nn.Linear(8, 3)
        self.e = nn.Linear(8, 8)
        self.p, self.q, self.v = (nn.Parameter(torch.ones(n)) for n in (6, 4, 8))
        self.w, self.square = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8, 8))
        self.register_buffer("rows", torch.randn(4, 1).expand(4, 8).clone())
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def h(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))


def case(order: float) -> Callable[[Forward], Forward]:
    def add(forward: Forward) -> Forward:
        CASES[forward.__name__] = order, forward
        return forward

    return add


# Written in parts ---------------------------------------------------------------------------------


@case(f(8))
def loop(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 4, 8)
    for t in range(4):
        out[:, t] = s.h(x) * (t + 1)
    return s.c(out)


@case(f(8))
def slices_of_several_sizes(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 5, 8)
    out[:, 0] = s.h(x)
    out[:, 1:3] = torch.tanh(s.h(x))[:, None]
    out[:, 3:4] = s.h(x)[:, None] ** 2
    out[:, 4:].fill_(2.0)
    return s.c(out)


@case(f(8))
def what_was_written_is_read_back(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 4, 8)
    out[:, 0] = s.h(x)
    for t in range(1, 4):
        out[:, t] = torch.tanh(s.e(out[:, t - 1 : t].squeeze(1)))
    return s.c(out[:, 1:]) + s.d(out[:, :1])


@case(f(8))
def all_before_is_read_back(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 4, 8)
    out[:, 0] = s.h(x)
    for t in range(1, 4):
        out[:, t] = torch.tanh(s.e(out[:, :t].sum(1)))
    return s.c(out)


@case(f(4, 4))
def a_part_of_what_was_written_is_read_back(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 2, 8)
    out[:, 0] = s.h(x)
    out[:, 1] = out[:, 0, :4].sum(1, keepdim=True)
    return s.c(out)


@case(f(4, 4))
def halves(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 8)
    out[:, :4] = s.h(x)[:, :4]
    out[:, 4:] = torch.tanh(s.h(x)[:, 4:])
    return s.c(out)


@case(f(7))
def shifted(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 8)
    out[:, 1:] = s.h(x)[:, :-1]
    return s.c(out) + s.d(s.h(x))


@case(f(3, 2, 3))
def overlapping(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 8)
    out[:, :5] = s.h(x)[:, :5]
    out[:, 3:] += s.b(x)[:, 3:]
    return s.c(out)


@case(f(4, 4))
def overwritten_again(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 2, 8)
    for way in (torch.tanh, torch.sin, torch.cos):
        out[:, 0, :4] = way(s.h(x))[:, :4]
        out[:, 0, 4:] = way(s.h(x))[:, 4:]
    return s.c(out)


@case(f(4, 4))
def views_of_views(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 4, 8)
    middle = out[:, 1:3]
    middle[:, 0][:, :4] = s.h(x)[:, :4]
    middle[:, 1] = s.h(x)
    return s.c(out)


@case(f(4, 4))
def the_base_sees_what_a_view_was_given(s: Model, x: Tensor) -> Tensor:
    h = s.h(x) * 1
    h.view(len(x), 2, 4)[:, 0].mul_(2.0)
    return s.c(h)


@case(f(8))
def a_view_sees_what_another_was_given(s: Model, x: Tensor) -> Tensor:
    h = s.h(x) * 1
    one, two = h[:, :], h.detach()
    two.tanh_()
    return s.c(one) + s.d(h)


@case(f(4))
def halves_given_each_other(s: Model, x: Tensor) -> Tensor:
    h = s.h(x).view(len(x), 2, 4) * 1
    one, two = h.unbind(1)
    one.mul_(two)
    two.add_(one)
    return s.c(h.flatten(1))


@case(f(8))
def into_a_constant(s: Model, x: Tensor) -> Tensor:
    table = s.rows.clone()
    flat = table.view(32)
    table[2].copy_(s.h(x).sum(0))
    return s.c(flat.view(4, 8))


@case(f(4, 4))
def into_a_parameter(s: Model, x: Tensor) -> Tensor:
    w = s.w[:, :, None].expand(8, 4, 3).clone()
    w[:4, :, 0] = s.q
    return s.c(torch.einsum("nk,okt->no", x, w))


@case(f(8))
def a_row_of_a_parameter_that_was_repeated(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(5, 8)
    out[:] = s.v
    out[2] = s.h(x)[2]
    return s.c(out)


@case(f(4, 4))
def turned_in_place_before(s: Model, x: Tensor) -> Tensor:
    h = s.h(x) * 1
    left = h[:, :4]
    h.unsqueeze_(1)
    left.mul_(2.0)
    return s.c(h[:, 0])


@case(f(8, 8, 8))
def turned_in_place(s: Model, x: Tensor) -> Tensor:
    w = s.square.clone()
    view = w[:]
    view.t_()
    return s.c(s.h(x) @ w) + s.d(s.e(x.new_ones(len(x), 8)).tanh() @ view)


# Other strides ------------------------------------------------------------------------------------


def over_time(s: Model, x: Tensor) -> Tensor:
    return (s.h(x)[:, None] * s.p[:, None]).contiguous()


@case(f(8))
def chunks_that_overlap(s: Model, x: Tensor) -> Tensor:
    return s.c(over_time(s, x).as_strided((len(x), 2, 4, 8), (48, 16, 8, 1)))


@case(f(8))
def chunks_see_writes(s: Model, x: Tensor) -> Tensor:
    h = over_time(s, x)
    chunks = h.as_strided((len(x), 2, 4, 8), (48, 16, 8, 1))
    h[:, 3] = s.b(x)
    return s.c(chunks)


@case(f(4, 4))
def written_by_other_strides(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 8)
    out.as_strided((len(x), 4), (8, 2)).copy_(s.h(x)[:, :4])
    out.as_strided((len(x), 4), (8, 2), 1).copy_(s.h(x)[:, 4:].tanh())
    return s.c(out)


@case(0.0)
def written_as_other_numbers(s: Model, x: Tensor) -> Tensor:
    h = s.h(x) * 1
    h.view(torch.int64 if x.dtype == torch.float64 else torch.int32)[:, 0] = 0
    return s.c(h)


# Views of which little is read --------------------------------------------------------------------


@case(f(8))
def only_shapes_and_types(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    one = torch.ones_like(h[:, :1]) * 0.5
    like = h.view(len(x), 2, 4)[..., 0].new_zeros(len(x), 3)
    same = s.b(x)[:1].expand_as(h[:, :]).type_as(h[:, 3:5])
    return s.c(h + same) + one + like + h.chunk(4, 1)[2].shape[1]


@case(f(2, 6))
def a_slice_of_a_slice(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    return s.c(h) + h[:, :4][:, 1:3].sum(1, keepdim=True)


@case(f(2, 6))
def a_slice_of_parts(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    return s.c(h) + h[:, :4].view(len(x), 2, 2)[:, :, 0].sum(1, keepdim=True)


@case(f(7))
def a_single_unit_turned(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    return s.c(h) + h[:, 1:][:, :1].view(len(x)).view(len(x), 1)


@case(f(4, 4))
def a_slice_in_another_shape(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    return s.c(h) + h[:, :4].reshape(2, -1).view(len(x), 4).sum(1, keepdim=True)


@case(f(2, 6))
def one_of_several_parts(s: Model, x: Tensor) -> Tensor:
    h = s.h(x)
    return s.c(h) + h.split([3, 2, 3], 1)[1].sum(1, keepdim=True)


@pytest.mark.parametrize("name", CASES)
def test_the_group_of_what_was_written_and_read(name: str) -> None:
    order, forward = CASES[name]
    torch.manual_seed(0)
    model = randomise(Model(forward)).double()
    symmetry = fxrebasin.analyze(model, inputs(1))
    assert symmetry.log10_order() == pytest.approx(order)
    for seed in range(3):
        other = permuted(model, symmetry.random(seed))
        for x in (inputs(1), inputs(2)):
            assert difference(outputs(model, (x,), {}), outputs(other, (x,), {})) < 1e-12


def inputs(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("turn", ["t_", "unsqueeze_"])
def test_a_constant_that_was_turned_keeps_what_its_views_are_given(turn: str) -> None:
    def forward(s: Model, x: Tensor) -> Tensor:
        table = x.new_zeros(8, 8)
        row = table[0]
        getattr(table, turn)(*([0] if turn == "unsqueeze_" else []))
        row.copy_(s.h(x)[0])
        return s.c(table)

    model = randomise(Model(forward)).double()
    other = permuted(model, fxrebasin.analyze(model, inputs(1)).random(0))
    x = inputs(2)
    assert difference(outputs(model, (x,), {}), outputs(other, (x,), {})) < 1e-12


# Windows of attention, put together from chunks ---------------------------------------------------


@pytest.mark.parametrize("tokens_for_all", [False, True])
def test_heads_of_windowed_attention_are_interchangeable(tokens_for_all: bool) -> None:
    """Longformer's and LED's layer: overlapping chunks, diagonals as columns, pieces of scores."""
    pytest.importorskip("transformers")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = LongformerConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=4)
            config.attention_window = [4]
            self.enter, self.leave = nn.Linear(5, 12), nn.Linear(12, 3)
            self.attention = LongformerSelfAttention(config, 0)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            masks = {
                "attention_mask": mask * 0,
                "is_index_masked": mask < 0,
                "is_index_global_attn": mask > 0,
                "is_global_attn": tokens_for_all,
            }
            mixed: Tensor = self.leave(self.attention(self.enter(x), **masks)[0])
            return mixed

    mask = (torch.arange(16) == 0).float()[None] * tokens_for_all
    x = torch.randn(1, 16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    symmetry = assert_group_is_sound(Windowed(), (x.float(), mask))
    groups = 12 if tokens_for_all else 8
    assert symmetry.log10_order() == pytest.approx(f(12, 4) + groups * f(3))


# Growth -------------------------------------------------------------------------------------------


def write_only(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), x.shape[1], 8)
    state = torch.relu(s.a(x[:, 0]))
    for t in range(x.shape[1]):
        state = torch.tanh(s.e(state) + s.a(x[:, t]))
        out[:, t] = state
    return s.c(out)


def read_back(s: Model, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), x.shape[1], 8)
    out[:, 0] = torch.relu(s.a(x[:, 0]))
    for t in range(1, x.shape[1]):
        out[:, t] = torch.tanh(s.e(out[:, t - 1]) + s.a(x[:, t]))
    return s.c(out)


def changed_in_place(s: Model, x: Tensor) -> Tensor:
    out = s.a(x) * 1
    for t in range(x.shape[1]):
        out[:, t] *= s.v
    return s.c(out)


def unbound(s: Model, x: Tensor) -> Tensor:
    out = s.a(x) * 1
    for t, part in enumerate(out.unbind(1)):
        part.add_(s.b(x[:, t]))
    return s.c(out)


@pytest.mark.parametrize("forward", [write_only, read_back, changed_in_place, unbound])
def test_what_a_loop_of_writes_records_grows_with_its_length(forward: Forward) -> None:
    model = Model(forward)

    def recorded(length: int) -> int:
        ledger = propagate(copy.deepcopy(model), (torch.randn(2, length, 4),), {}).ledger
        labels = [values for met in ledger.relations.values() for values in met]
        return sum(values.numel() for values in [*labels, *ledger.members, *ledger.used])

    short, long = recorded(32), recorded(128)
    assert long < 4.5 * short


def several_values_for_one_place(x: Tensor, y: Tensor) -> Tensor:
    memory = (x * 1).expand(3, 4)
    memory[:, torch.tensor([2, 0, 1, 3])] = y
    return memory * 1


def several_rows_for_one_row(x: Tensor, y: Tensor) -> Tensor:
    memory = x.exp()
    torch.ops.aten.index_put_(memory.expand(3, 4), [None, torch.tensor([2, 0, 1, 3])], y)
    return memory * 1


@pytest.mark.filterwarnings("ignore")  # torch warns of such writes, and does them
@pytest.mark.parametrize("call", [several_values_for_one_place, several_rows_for_one_row])
def test_which_of_several_values_stays_is_left_open(call: Callable[..., Tensor]) -> None:
    trial = Trial(program("repeated", call, p(1, 4), p(3, 4)))
    symmetry = analysed(trial)
    assert not incorrect(trial, symmetry)
    assert ("x1", 0) in symmetry.pins


@pytest.mark.parametrize("dim", [0, -2])
def test_writes_into_a_tensor_without_rows(dim: int) -> None:
    index = torch.tensor([2, 0])
    trial = Trial(
        program(
            "no rows",
            lambda x, y: torch.cat([x.index_add(dim, index, y), y * 2]),
            p(0, 4),
            p(2, 4),
        )
    )
    symmetry = analysed(trial)
    assert not incorrect(trial, symmetry)
