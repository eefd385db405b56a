"""Elements of whole groups are found in models of a library: grouped heads, ties, rotary pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as t
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.kinds import GroupKind
from fxrebasin.models.untying import ties_of, untied
from tests.support.elements import elements_of
from tests.support.randomise import randomise

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = {**SMALL, "vocab_size": 20, "intermediate_size": 24, "num_key_value_heads": 2}


def words() -> Tensor:
    """Two texts."""
    return torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))


def image() -> Tensor:
    """Two images."""
    gen = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 8, generator=gen, dtype=torch.float64)


def llama(tied: bool = False) -> nn.Module:
    """Grouped heads, rotary embeddings, a gate."""
    return t.LlamaForCausalLM(t.LlamaConfig(**WORDS, tie_word_embeddings=tied))


def gemma() -> nn.Module:
    """Norms that multiply by one more than their weight."""
    return t.GemmaForCausalLM(t.GemmaConfig(**WORDS, head_dim=4, tie_word_embeddings=False))


def vit() -> nn.Module:
    """A class token and patches."""
    return t.ViTForImageClassification(
        t.ViTConfig(**SMALL, intermediate_size=24, image_size=8, patch_size=4, num_labels=5)
    )


def mixtral() -> nn.Module:
    """Experts, gathered for each word: the other way of multiplying by them refuses float64."""
    config = t.MixtralConfig(**WORDS, num_local_experts=3, tie_word_embeddings=False)
    net = t.MixtralForCausalLM(config)
    net.set_experts_implementation("batched_mm")
    return net


def neox() -> nn.Module:
    """Two branches beside each other, and a part of each head that is turned."""
    own = {k: v for k, v in WORDS.items() if k != "num_key_value_heads"}
    return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**own, rotary_pct=0.5))


def falcon() -> nn.Module:
    """Queries, the only keys and the only values are picked from one tensor."""
    own = {k: v for k, v in WORDS.items() if k != "num_key_value_heads"}
    return t.FalconForCausalLM(
        t.FalconConfig(**own, ffn_hidden_size=24, bias=True, tie_word_embeddings=False)
    )


def bert() -> nn.Module:
    """Norms behind the stream."""
    own = {k: v for k, v in WORDS.items() if k != "num_key_value_heads"}
    return t.BertForSequenceClassification(t.BertConfig(**own, num_labels=3))


def convnext() -> nn.Module:
    """Scales of layers."""
    config = t.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 12], depths=[1, 2], patch_size=2, num_labels=5
    )
    return t.ConvNextForImageClassification(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], GroupKind]] = {
    "Llama": (llama, words, GroupKind.ORTHOGONAL),
    "Gemma": (gemma, words, GroupKind.ORTHOGONAL),
    "tied Llama": (lambda: llama(tied=True), words, GroupKind.SIGNED),
    "ViT": (vit, image, GroupKind.ORTHOGONAL_FIXING_ONES),
    "Mixtral": (mixtral, words, GroupKind.ORTHOGONAL),
    "GPT-NeoX": (neox, words, GroupKind.ORTHOGONAL_FIXING_ONES),
    "Falcon": (falcon, words, GroupKind.COMPLEX_PAIRS),
    "BERT": (bert, words, GroupKind.GENERAL_LINEAR),
    "ConvNeXt": (convnext, image, GroupKind.PERMUTATION),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_planted_element_is_found(name: str) -> None:
    make, example, stream = MODELS[name]
    torch.manual_seed(0)
    net, inputs = randomise(make().eval()).double(), example()
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    assert stream in {c.kind for c in symmetry.classes}
    planted = Alignment(
        symmetry.random(3), symmetry.groups, elements_of(symmetry), ties=ties_of(net)
    )
    other = copy.deepcopy(net)
    other.load_state_dict(planted.apply(net.state_dict()))
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(found, Alignment)
    moved = found.apply(other.state_dict())
    for key, value in net.state_dict().items():
        assert float((moved[key] - value).norm()) <= 1e-9 * float(value.norm()), key
    embedding = next(key for key, value in moved.items() if "embed" in key and value.dim() > 1)
    assert not torch.allclose(other.state_dict()[embedding], net.state_dict()[embedding])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *("GPT-NeoX", "BERT", "ConvNeXt"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Gemma", "Mixtral")),
    ],
)
def test_float32_is_rounded_about_as_the_model_rounds(name: str) -> None:
    make, example, _ = MODELS[name]
    net, other = (randomise(make().eval(), seed) for seed in (1, 2))
    inputs = example()
    inputs = inputs if inputs.dtype is torch.int64 else inputs.float()
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all")
    report = result.meta["fxrebasin"]
    own, rounded = report.rounding
    assert 0 < rounded <= 3 * own
    assert report.equivalence.max_rel <= 1e-10


@pytest.mark.filterwarnings("ignore")
def test_what_is_added_to_a_scale_is_kept_in_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, inputs = randomise(gemma().eval()).double(), words()
    torch.manual_seed(1)
    other = randomise(gemma().eval()).double()
    found = fxrebasin.match(other, ref=net, example_inputs=inputs, symmetry="all")
    assert isinstance(found, Alignment)
    moved = found.apply(other.state_dict())
    scale = "model.layers.0.input_layernorm.weight"
    torch.testing.assert_close(moved[scale], net.state_dict()[scale])  # A's gauge
    same = gemma().eval().double()
    same.load_state_dict(moved)
    assert fxrebasin.verify(other, same, inputs).passed
    found.save(tmp_path / "alignment.safetensors")
    again = Alignment.load(tmp_path / "alignment.safetensors")
    for key, value in again.apply(other.state_dict()).items():
        assert torch.equal(value, moved[key])
    back = again.inverse().apply(moved)
    torch.testing.assert_close(back[scale], other.state_dict()[scale])


@pytest.mark.filterwarnings("ignore")
def test_untying_allows_rotations_behind_a_final_scale() -> None:
    torch.manual_seed(0)
    net, inputs = randomise(llama(tied=True).eval()).double(), words()
    torch.manual_seed(1)
    other = randomise(llama(tied=True).eval()).double()
    with torch.no_grad():
        for model in (net, other):
            scale = model.get_parameter("model.norm.weight")
            scale.copy_(torch.rand_like(scale) + 0.5)
    result = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all")
    report = result.meta["fxrebasin"]
    assert any("'signed', with tensors tied (lm_head.weight to" in note for note in report.notes)
    loose = fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all", untie=True)
    report = loose.meta["fxrebasin"]
    assert not any("with tensors tied" in note for note in report.notes)
    assert GroupKind.ORTHOGONAL in report.certificate.kinds.values()
    state = loose.state_dict()
    assert state.keys() == other.state_dict().keys()
    assert not torch.allclose(state["lm_head.weight"], state["model.embed_tokens.weight"])
    same = untied(other)
    same.load_state_dict(state)
    assert fxrebasin.verify(other, same, inputs).passed
    assert ties_of(other)
    with pytest.raises(fxrebasin.InputError, match="beyond permutations"):
        fxrebasin.match(other, ref=net, example_inputs=inputs, untie=True)
