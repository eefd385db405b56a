"""`flex_attention`: the function of the scores is seen, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import TraceError
from tests.support.randomise import assert_group_is_sound, permuted, randomise
from tests.support.randomise import log10_factorial as f

flex = pytest.importorskip("torch.nn.attention.flex_attention")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

Scores: TypeAlias = "Callable[[Any, Tensor], dict[str, Any]]"
TOKENS = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Four heads of three dimensions; `groups` of them share keys and values."""

    def __init__(self, options: Scores, groups: int = 1) -> None:
        super().__init__()
        few = 12 // groups
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, few), nn.Linear(5, few)
        self.o, self.slopes = nn.Linear(12, 2), nn.Parameter(torch.randn(4))
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = flex.flex_attention(q, k, v, **self.options(self, x))
        left: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return left


def causal(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return torch.where(i >= j, score, -float("inf"))


def distances(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score + (i - j) * (h + 1)


def learned(m: Attention) -> Callable[..., Tensor]:
    return lambda score, b, h, i, j: score * m.slopes[h]


def window(m: Any, x: Tensor) -> dict[str, Any]:
    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j).abs() < 3

    return {"block_mask": flex.create_block_mask(near, None, None, 6, 6, device="cpu")}


HEADS, DIMS = f(4), f(3)


@pytest.mark.parametrize(
    ("options", "groups", "order"),
    [
        pytest.param(lambda m, x: {}, 1, HEADS + 8 * DIMS, id="plain"),
        pytest.param(lambda m, x: {"score_mod": causal}, 1, HEADS + 8 * DIMS, id="causal"),
        pytest.param(lambda m, x: {"score_mod": distances}, 1, 8 * DIMS, id="numbered heads"),
        pytest.param(lambda m, x: {"score_mod": learned(m)}, 1, HEADS + 8 * DIMS, id="learned"),
        pytest.param(window, 1, HEADS + 8 * DIMS, id="window"),
        pytest.param(lambda m, x: {"enable_gqa": True}, 2, 3 * f(2) + 4 * DIMS, id="grouped"),
    ],
)
def test_the_group_of_flex_attention(options: Scores, groups: int, order: float) -> None:
    before = flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    symmetry = assert_group_is_sound(Attention(options, groups), (TOKENS,))
    assert symmetry.log10_order() == pytest.approx(order)
    assert flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG is before


def test_verify_runs_flex_attention() -> None:
    model = randomise(Attention(lambda m, x: {"score_mod": causal})).double()
    element = fxrebasin.analyze(model, TOKENS.double()).random(0)
    other = permuted(model, element)
    assert fxrebasin.verify(model, other, TOKENS.double()).passed
    with torch.no_grad():
        other.o.weight.mul_(1.001)
    assert not fxrebasin.verify(model, other, TOKENS.double()).passed


class Ragged(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.a, self.b, self.options = nn.Linear(5, 8), nn.Linear(8, 2), options

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.nested.as_nested_tensor([self.a(x[0, :2]), self.a(x[1])], **self.options)
        return self.b(parts.relu()).to_padded_tensor(0.0)


def test_nested_tensors_of_the_strided_layout_are_refused_by_name() -> None:
    with pytest.raises(TraceError, match=r"nested tensor of the strided layout.*torch\.jagged"):
        fxrebasin.analyze(Ragged(), TOKENS)


def test_nested_tensors_of_the_jagged_layout_are_followed() -> None:
    symmetry = assert_group_is_sound(Ragged(layout=torch.jagged), (TOKENS,))
    assert symmetry.log10_order() == pytest.approx(f(8))
