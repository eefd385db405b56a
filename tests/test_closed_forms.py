"""The order of the group of models whose group can be written down."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import fxrebasin
from tests.support.randomise import log10_factorial as f

torchvision = pytest.importorskip("torchvision.models")
transformers = pytest.importorskip("transformers")


def resnet(widths: dict[int, int]) -> float:
    return sum(count * f(width) for width, count in widths.items())


def resnext50() -> float:
    """Groups of the middle convolutions: 32 of them, with their inputs and outputs inside."""
    blocks = [(3, 4), (4, 8), (6, 16), (3, 32)]
    inner = sum(count * (f(32) + 64 * f(width)) for count, width in blocks)
    return f(64, 256, 512, 1024, 2048) + inner


def densenet121() -> float:
    return f(64, 128, 256, 512) + 58 * f(128, 32)


def attention(heads: int, dims: int) -> float:
    return f(heads) + 2 * heads * f(dims)


def vit_b_16() -> float:
    return f(768) + 12 * (f(3072) + attention(12, 64))


SWIN_T = [(96, 2, 3), (192, 2, 6), (384, 6, 12), (768, 2, 24)]
"""Width, blocks and heads of each stage."""


def swin(extra: float) -> float:
    stages = [
        f(width) + blocks * (attention(heads, 32) + f(4 * width) + extra)
        for width, blocks, heads in SWIN_T
    ]
    return sum(stages)


def convnext_tiny() -> float:
    blocks = [(96, 3), (192, 3), (384, 9), (768, 3)]
    return sum(f(width) + count * f(4 * width) for width, count in blocks)


def maxvit_t() -> float:
    """Each layer: an inverted bottleneck with squeeze-excitation, and attention twice."""
    stages = [(64, 2), (128, 2), (256, 5), (512, 2)]
    total = f(64, 64) + f(512)
    for width, layers in stages:
        bottleneck = f(4 * width, width // 4)
        block = attention(width // 32, 32) + f(4 * width)
        total += f(width) + layers * (bottleneck + 2 * block)
    return total


def mobilenet_v2() -> float:
    """Streams at every change of width; the widest part of a block is its expansion."""
    stages = [(6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    total, before = f(32, 16, 1280), 16
    for expansion, width, count in stages:
        total += f(width, expansion * before) + (count - 1) * f(expansion * width)
        before = width
    return total


def squeezenet1_1() -> float:
    fires = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
    return f(64) + sum(f(squeeze, expand, expand) for squeeze, expand in fires)


TORCHVISION = {
    "alexnet": f(64, 192, 384, 256, 256, 4096, 4096),
    "vgg11_bn": f(64, 128, 256, 256, 512, 512, 512, 512, 4096, 4096),
    "resnet18": 3 * f(64, 128, 256, 512),
    "resnet50": resnet({64: 7, 128: 8, 256: 13, 512: 7, 1024: 1, 2048: 1}),
    "resnext50_32x4d": resnext50(),
    "densenet121": densenet121(),
    "mobilenet_v2": mobilenet_v2(),
    "squeezenet1_1": squeezenet1_1(),
    "convnext_tiny": convnext_tiny(),
    "vit_b_16": vit_b_16(),
    "swin_t": swin(0.0),
    "swin_v2_t": swin(f(512)),
    "maxvit_t": maxvit_t(),
    "shufflenet_v2_x1_0": 9688.625,
}
"""log10 of the order; the last was counted by hand, block by block, to three decimals."""

PUBLISHED = {
    "resnet18": 5934.493,
    "resnet50": 25638.293,
    "resnext50_32x4d": 24223.063,
    "densenet121": 16536.531,
    "vit_b_16": 140226.387,
    "swin_t": 62662.126,
    "convnext_tiny": 77559.773,
    "swin_v2_t": 76660.621,
    "maxvit_t": 101306.520,
}
"""What the formulas above come to."""

FULL_SIZE = ("vit_b_16", "maxvit_t")


def test_the_formulas_are_those_that_are_published() -> None:
    for name, order in PUBLISHED.items():
        assert TORCHVISION[name] == pytest.approx(order, abs=1e-3), name


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    size = 224 if name in FULL_SIZE else 64
    with torch.device("meta"):
        model = torchvision.get_model(name)
        images = torch.empty(2, 3, size, size)
    symmetry = fxrebasin.analyze(model, images)
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(TORCHVISION[name], rel=1e-6)


WIDTH, LAYERS, HEADS, HIDDEN = 24, 2, 3, 20
DIMS = WIDTH // HEADS
BLOCK = f(4 * WIDTH) + attention(HEADS, DIMS)
IDS = torch.arange(10).view(2, 5) % 17

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def gpt2(kind: str, implementation: str, **options: object) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=8, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, **options
    )
    config._attn_implementation = implementation
    return getattr(transformers, kind)(config)


def order(model: nn.Module, **inputs: torch.Tensor) -> float:
    symmetry = fxrebasin.analyze(model, (), inputs)
    assert symmetry.unknown_operators == ()
    return symmetry.log10_order()


@IMPLEMENTATIONS
@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_with_its_head(implementation: str, tied: bool) -> None:
    model = gpt2("GPT2LMHeadModel", implementation, tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    expected = f(WIDTH) + LAYERS * BLOCK
    assert order(model, input_ids=IDS) == pytest.approx(expected, rel=1e-6)


@IMPLEMENTATIONS
def test_gpt2_whose_hidden_state_is_the_output(implementation: str) -> None:
    model = gpt2("GPT2Model", implementation)
    assert order(model, input_ids=IDS) == pytest.approx(LAYERS * BLOCK, rel=1e-6)


@IMPLEMENTATIONS
def test_a_padding_mask_takes_nothing_away(implementation: str) -> None:
    model = gpt2("GPT2LMHeadModel", implementation)
    mask = torch.ones_like(IDS)
    mask[1, 3:] = 0
    found = order(model, input_ids=IDS, attention_mask=mask)
    assert found == pytest.approx(f(WIDTH) + LAYERS * BLOCK, rel=1e-6)


def llama_like(kind: str, implementation: str, groups: int, **options: object) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=17,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=groups,
        max_position_embeddings=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    config._attn_implementation = implementation
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def grouped(groups: int, per_group: int, dims: int) -> float:
    """Groups, query heads in each, and dims of the values in each; rotation pins the others."""
    return f(groups) + groups * (f(per_group) + f(dims))


@IMPLEMENTATIONS
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_llama(implementation: str, groups: int) -> None:
    model = llama_like("Llama", implementation, groups)
    expected = f(WIDTH) + LAYERS * (f(HIDDEN) + grouped(groups, 6 // groups, 4))
    assert order(model, input_ids=IDS) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
def test_relatives_of_llama(kind: str) -> None:
    model = llama_like(kind, "sdpa", 2)
    expected = f(WIDTH) + LAYERS * (f(HIDDEN) + grouped(2, 3, 4))
    assert order(model, input_ids=IDS) == pytest.approx(expected, rel=1e-6)


@IMPLEMENTATIONS
def test_bert(implementation: str) -> None:
    """The pooler has units of its own."""
    config = transformers.BertConfig(
        vocab_size=17, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    config._attn_implementation = implementation
    model = transformers.BertForSequenceClassification(config)
    expected = f(WIDTH, WIDTH) + LAYERS * (f(HIDDEN) + attention(HEADS, DIMS))
    assert order(model, input_ids=IDS) == pytest.approx(expected, rel=1e-6)


@IMPLEMENTATIONS
def test_vit(implementation: str) -> None:
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    config._attn_implementation = implementation
    model = transformers.ViTForImageClassification(config)
    expected = f(WIDTH) + LAYERS * (f(HIDDEN) + attention(HEADS, DIMS))
    images = torch.zeros(2, 3, 8, 8)
    assert order(model, pixel_values=images) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_t5(feed_forward: str) -> None:
    """All layers of a stack share one table of position biases, and with it their heads.

    The encoder's last hidden state is among the outputs, which pins the width.
    """
    config = transformers.T5Config(
        vocab_size=17, d_model=WIDTH, d_kv=DIMS, d_ff=HIDDEN, num_layers=LAYERS,
        num_heads=HEADS, feed_forward_proj=feed_forward, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    dims = 2 * HEADS * f(DIMS)
    encoder = f(HEADS) + LAYERS * (dims + f(HIDDEN))
    decoder = f(HEADS) + LAYERS * (dims + f(HEADS) + dims + f(HIDDEN))
    found = order(model, input_ids=IDS, decoder_input_ids=IDS[:, :3])
    assert found == pytest.approx(encoder + decoder, rel=1e-6)


@pytest.mark.parametrize("sizes", [(3, 7, 2), (3, 7, 9, 2)])
def test_inputs_are_inferred(sizes: tuple[int, ...]) -> None:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    expected = sum(math.log10(math.factorial(n)) for n in sizes[1:-1])
    assert fxrebasin.analyze(nn.Sequential(*layers)).log10_order() == pytest.approx(expected)
