"""Planted permutations are found: B is A with its units in another order, and comes back as A."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from tests.support.randomise import permuted, randomise
from tests.support.zoo import build, fill, image_size

pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

DEFAULT = ("resnet18", "mobilenet_v3_large", "shufflenet_v2_x1_0")
SLOW = (
    *("resnet50", "vit_b_16", "densenet121", "swin_t", "convnext_tiny", "resnext50_32x4d"),
    *("efficientnet_b1", "maxvit_t"),
)


def assert_recovered(a: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """B, a random element of the group applied to A, is re-based onto A bit for bit."""
    symmetry = fxrebasin.analyze(a, args, kwargs)
    b = permuted(a, symmetry.random(seed=3))
    moved = [n for n, t in a.state_dict().items() if not torch.equal(t, b.state_dict()[n])]
    assert moved
    g = fxrebasin.transform(b, ref=a, example_inputs=args, example_kwargs=kwargs)
    assert list(g.state_dict()) == list(a.state_dict())
    wrong = [n for n, t in a.state_dict().items() if not torch.equal(t, g.state_dict()[n])]
    assert not wrong, f"{len(wrong)} of {len(moved)} moved tensors are not as in A: {wrong[:5]}"
    report = g.meta["fxrebasin"]
    assert report.distance_after == 0
    assert report.distance_before > 0
    assert report.equivalence.passed


@pytest.mark.parametrize(
    "name", [*DEFAULT, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_torchvision(name: str) -> None:
    a = fill(build(name), seed=2, dtype=torch.float32)
    size = image_size(name)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert_recovered(a, (images,), {})


IDS = torch.arange(12).view(2, 6) % 31


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=8, n_embd=24, n_layer=2, n_head=3, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=8,
        use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=31, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [gpt2, llama, t5])
def test_transformers(make: Any) -> None:
    a = randomise(make()).eval()
    kwargs = {"input_ids": IDS}
    if make is t5:
        kwargs["decoder_input_ids"] = IDS[:, :4]
    assert_recovered(a, (), kwargs)


def test_noise_does_not_hide_it() -> None:
    """The permutation is found even if the weights are not those of A to the last bit."""
    a = randomise(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.Linear(30, 5)))
    symmetry = fxrebasin.analyze(a, torch.zeros(2, 6))
    planted = symmetry.random(seed=1)
    b = copy.deepcopy(permuted(a, planted))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    found = fxrebasin.match(b, ref=a, example_inputs=torch.zeros(2, 6))
    assert found == planted.inverse()
