"""State tensors that are too large for every element to be a unit of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.passes.fields import elements
from fxrebasin.passes.fields.fields import squeeze_constant
from tests.support.randomise import assert_group_is_sound
from tests.support.randomise import log10_factorial as f

Forward: TypeAlias = "Callable[[Any, Tensor], Tensor]"
TOKENS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


class Mixer(nn.Module):
    """A residual stream of 6 features, and what a layer that adds to it needs."""

    def __init__(self, layer: Forward, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 2)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        left: Tensor = self.leave(x + self.layer(self, x))
        return left


def attention(pattern: str) -> Forward:
    """Attention with raw weights, whose axes `pattern` names: of h(eads), d(ims), c(hannels)."""

    def layer(m: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum(f"ntc,{pattern}->nhtd", x, w) for w in (m.q, m.k, m.v))
        weights = torch.einsum("nhtd,nhsd->nhts", q, k).softmax(-1)
        mixed = torch.einsum("nhts,nhsd->nhtd", weights, v)
        return torch.einsum(f"nhtd,{pattern}->ntc", mixed, m.o)

    return layer


def experts(m: Any, x: Tensor) -> Tensor:
    inside = torch.einsum("ntc,ecf->ntef", x, m.up).relu()
    shares = m.gate(x).softmax(-1)
    return torch.einsum("nte,ntef,efc->ntc", shares, inside, m.down)


def heads_of_experts(m: Any, x: Tensor) -> Tensor:
    stack = x[:, :, None].expand(-1, -1, 4, -1)
    inside = torch.einsum("ntec,ehcd->ntehd", stack, m.w).relu()
    return torch.einsum("nte,ntehd,ehdc->ntc", m.gate(x).softmax(-1), inside, m.o)


SIZES = {"h": 4, "c": 6, "d": 3}


@pytest.mark.parametrize("pattern", ["hcd", "chd", "dhc", "hdc", "dch", "cdh"])
def test_raw_attention_weights_of_any_size_keep_all_their_freedom(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elements, "MATERIALISE_AT_MOST", 16)
    shape = tuple(SIZES[axis] for axis in pattern)
    model = Mixer(attention(pattern), **dict.fromkeys("qkvo", shape))
    symmetry = assert_group_is_sound(model, (TOKENS,))
    assert symmetry.log10_order() == pytest.approx(f(6, 4) + 8 * f(3))
    assert symmetry.notes == ()


def test_stacks_of_experts_of_any_size_keep_all_their_freedom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elements, "MATERIALISE_AT_MOST", 16)
    symmetry = assert_group_is_sound(Mixer(experts, up=(4, 6, 5), down=(4, 5, 6)), (TOKENS,))
    assert symmetry.log10_order() == pytest.approx(f(6, 4) + 4 * f(5))


def test_what_is_not_looked_for_in_a_large_tensor_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixer(heads_of_experts, w=(4, 2, 6, 3), o=(4, 2, 3, 6))
    whole = assert_group_is_sound(model, (TOKENS,))
    assert whole.notes == ()
    monkeypatch.setattr(elements, "MATERIALISE_AT_MOST", 16)
    symmetry = assert_group_is_sound(model, (TOKENS,))
    assert symmetry.log10_order() < whole.log10_order()
    (note,) = symmetry.notes
    assert note.startswith("w has more than 16 elements, and aten.")


def test_tensors_that_are_merged_as_a_whole_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mixer(lambda m, x: x * m.w.t().reshape(-1).sum(), w=(4, 5))
    assert fxrebasin.analyze(model, TOKENS).notes == ()
    monkeypatch.setattr(elements, "MATERIALISE_AT_MOST", 16)
    assert fxrebasin.analyze(model, TOKENS).notes == ()
    monkeypatch.setattr(elements, "MERGED_AT_MOST", 16)
    (note,) = assert_group_is_sound(model, (TOKENS,)).notes
    assert note.startswith("w has more than 16 elements")


def test_a_field_does_not_keep_the_memory_that_it_was_cut_out_of() -> None:
    wide = torch.arange(64).view(1, 64, 1).expand(32, 64, 128).contiguous()
    kept = squeeze_constant(wide, range(3))
    assert kept.flatten().tolist() == list(range(64))
    assert kept.untyped_storage().nbytes() == kept.nbytes
