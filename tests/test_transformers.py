"""Models of transformers: no operator is unknown, groups are complete, random elements do nothing.

Small configurations of many families, with attention written out and fused.
"""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.support.families import (
    analysed,
    assert_permutes_without_a_graph,
    assert_sound,
    assert_transforms,
    pair,
)
from tests.support.family_orders import TEXT_ORDERS, VISION_ORDERS
from tests.support.text_models import TEXT
from tests.support.vision_models import VISION

MODELS = {**TEXT, **VISION}
ORDERS = {**TEXT_ORDERS, **VISION_ORDERS}

UNFUSED = ("bloom", "deberta-v2", "detr", "mamba")
"""Models that refuse fused attention."""

QUICK_TRANSFORMS = ("vit", "llama")

QUICK_UNFUSED = (*UNFUSED, "bert", "gpt-neox", "llama", "mixtral")

MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe")

CASES = [
    pytest.param(name, kind, marks=[] if quick else pytest.mark.slow)
    for name in MODELS
    for kind in (("eager",) if name in UNFUSED else ("sdpa", "eager"))
    for quick in [kind == "sdpa" or name in QUICK_UNFUSED]
]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_the_group_is_complete_and_sound(name: str, attention: str) -> None:
    model, inputs = MODELS[name](attention)
    symmetry = analysed(model, (), inputs)
    assert symmetry.log10_order() == pytest.approx(ORDERS[name], rel=1e-6)
    assert_sound(model, (), inputs, symmetry)


@pytest.mark.parametrize("name", UNFUSED)
def test_these_have_no_fused_attention(name: str) -> None:
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        MODELS[name]("sdpa")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK_TRANSFORMS else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_transform(name: str) -> None:
    model_a, model_b, inputs = pair(MODELS[name], "eager" if name in UNFUSED else "sdpa")
    assert_transforms(model_a, model_b, (), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_run_one_by_one_have_no_graph(name: str) -> None:
    model_a, model_b, inputs = pair(MODELS[name], "sdpa")
    for model in (model_a, model_b):
        model.set_experts_implementation("eager")
    assert_permutes_without_a_graph(model_a, model_b, (), inputs)
