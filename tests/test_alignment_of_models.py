"""Elements of whole groups are found in models of a library: grouped heads, ties, rotary pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers as t
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.match.group_methods import ties_of
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


def vit() -> nn.Module:
    """A class token and patches."""
    return t.ViTForImageClassification(
        t.ViTConfig(**SMALL, intermediate_size=24, image_size=8, patch_size=4, num_labels=5)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], GroupKind]] = {
    "Llama": (llama, words, GroupKind.ORTHOGONAL),
    "tied Llama": (lambda: llama(tied=True), words, GroupKind.SIGNED),
    "ViT": (vit, image, GroupKind.ORTHOGONAL_FIXING_ONES),
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
    embedding = next(key for key in moved if "embed" in key)
    assert not torch.allclose(other.state_dict()[embedding], net.state_dict()[embedding])
