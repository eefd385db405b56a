"""Kinds and variances of the classes of models that people use, held against their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn

import fxrebasin
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.kinds.regauge import with_factors
from fxrebasin.symmetry import Symmetry
from tests.support.lie import (
    GENERATORS,
    free_directions,
    generator,
    multiplied,
    outputs_of,
)

IDS = {"input_ids": torch.randint(0, 23, (10, 6), generator=torch.Generator().manual_seed(0))}
IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 7,
    "vocab_size": 23,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _gpt2() -> nn.Module:
    return t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=23,
            n_positions=6,
            n_embd=8,
            n_layer=1,
            n_head=2,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
        )
    )


def _llama() -> nn.Module:
    grouped = {**SMALL, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    return t.LlamaForCausalLM(t.LlamaConfig(**grouped))


def _qwen() -> nn.Module:
    grouped = {**SMALL, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    return t.Qwen2ForCausalLM(t.Qwen2Config(**grouped))


def _bert() -> nn.Module:
    return t.BertForSequenceClassification(
        t.BertConfig(max_position_embeddings=6, num_labels=5, **SMALL)
    )


def _vit() -> nn.Module:
    own = {name: value for name, value in SMALL.items() if not name.endswith(("size", "id"))}
    return t.ViTForImageClassification(
        t.ViTConfig(
            hidden_size=8, intermediate_size=7, image_size=16, patch_size=8, num_labels=5, **own
        )
    )


def _timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=5
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


K = GroupKind
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], list[GroupKind]]] = {
    "gpt2": (
        _gpt2,
        IDS,
        [K.ORTHOGONAL_FIXING_ONES, K.PERMUTATION, K.GENERAL_LINEAR, K.GENERAL_LINEAR],
    ),
    "llama": (_llama, IDS, [K.ORTHOGONAL, K.MONOMIAL, K.GENERAL_LINEAR, K.COMPLEX_PAIRS]),
    "qwen2": (_qwen, IDS, [K.ORTHOGONAL, K.MONOMIAL, K.GENERAL_LINEAR, K.COMPLEX_PAIRS]),
    "bert": (
        _bert,
        IDS,
        [K.PERMUTATION, K.PERMUTATION, K.SIGNED, K.GENERAL_LINEAR, K.GENERAL_LINEAR],
    ),
    "vit": (
        _vit,
        {"pixel_values": IMAGES},
        [K.ORTHOGONAL_FIXING_ONES, K.PERMUTATION, K.GENERAL_LINEAR, K.GENERAL_LINEAR],
    ),
    "timm vit": (
        _timm_vit,
        {"x": IMAGES},
        [K.ORTHOGONAL_FIXING_ONES, K.PERMUTATION, K.GENERAL_LINEAR, K.GENERAL_LINEAR],
    ),
    "convolutions": (
        _resnet,
        {"input": IMAGES},
        [K.POSITIVE, K.POSITIVE, K.PERMUTATION, K.SIGNED],
    ),
}  # fmt: skip


QUICK = ("llama", "timm vit", "convolutions")


def _drawn(model: nn.Module) -> nn.Module:
    """At parameters that have nothing special about them."""
    gen = torch.Generator().manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=gen, dtype=torch.float64) * 0.4
                tensor.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return model


def _fold(model: nn.Module, symmetry: Symmetry) -> None:
    """Move factors of norms into what reads them, where that is possible."""
    assert symmetry.groups is not None
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    model.load_state_dict(with_factors(state, symmetry.groups, symmetry.classes, None))


def _of_interest(symmetry: Symmetry) -> list[PermutationClass]:
    outer = {name for c in symmetry.classes for name in c.within}
    grouped = {c.name for c in symmetry.classes if c.within and c.size == c.count == 2}
    return [c for c in symmetry.classes if c.name not in outer | grouped]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS],
)
def test_kinds_are_the_largest_groups_that_leave_the_function(name: str) -> None:
    build, given, expected = MODELS[name]
    torch.manual_seed(0)
    model = _drawn(build())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.zero_()  # derivatives are taken along parameters alone
    symmetry = fxrebasin.analyze(model, example_kwargs=given, symmetry="all")
    _fold(model, symmetry)
    classes = _of_interest(symmetry)
    assert [c.kind for c in classes] == expected
    for c in classes:
        if c.kind is not GroupKind.COMPLEX_PAIRS:
            allowed = {kind for kind in GENERATORS if kind <= c.kind}
            assert free_directions(model, symmetry, c, given) == allowed, c.name


def _element(c: PermutationClass, partner: tuple[int, ...]) -> Tensor:
    """An element of the group of a class, far from the identity."""
    if c.kind is GroupKind.SIGNED:
        return torch.diag(torch.tensor([-1.0, 1.0] * c.size, dtype=torch.float64)[: c.size])
    if c.kind is GroupKind.COMPLEX_PAIRS:
        found = torch.zeros(c.size, c.size, dtype=torch.float64)
        for unit, other in enumerate(partner):
            found[unit, unit] = 0.3 + min(unit, other)
            found[unit, other] = 0.7 if unit < other else -0.7
        return found
    own = GroupKind.POSITIVE if c.kind is GroupKind.MONOMIAL else c.kind
    return torch.linalg.matrix_exp(generator(own, c.size, seed=5) / 2)


@pytest.mark.parametrize("name", MODELS)
def test_variances_say_how_each_part_of_the_state_answers(name: str) -> None:
    build, given, _ = MODELS[name]
    torch.manual_seed(0)
    model = _drawn(build())
    symmetry = fxrebasin.analyze(model, example_kwargs=given, symmetry="all")
    assert symmetry.groups is not None
    _fold(model, symmetry)
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    before = outputs_of(model, state, given)
    for c in symmetry.classes:
        if c.kind is GroupKind.PERMUTATION:
            continue
        own = symmetry.groups.kinds[c.name]
        by = _element(c, own.partner)
        moved = dict(state)
        for place in (*own.parts, *own.scales, *own.signs):
            matrix = by if own.variance(place) > 0 else torch.linalg.inv(by).T
            if place in own.scales and place in own.signs and place not in own.parts:
                matrix = by if own.scales[place] > 0 else torch.linalg.inv(by)
            if own.variance(place):
                moved[place.state] = multiplied(symmetry, c, moved, place, matrix)
        changed = {key for key in state if not torch.equal(state[key], moved[key])}
        assert len(changed) > 1
        after = outputs_of(model, moved, given)
        assert (after - before).abs().max() <= 1e-11 * before.abs().max(), c.name
