"""Attention over long inputs, as transformers has it: windows, blocks, buckets, tokens for all."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

from tests.support.randomise import assert_group_is_sound
from tests.support.structures.table import f

SIZES = {"vocab_size": 97, "num_attention_heads": 3, "max_position_embeddings": 80}
BERT = {**SIZES, "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 10}
LED = {
    **{
        f"{part}_{what}": size
        for part in ("encoder", "decoder")
        for what, size in (
            ("layers", 1),
            ("attention_heads", 3),
            ("ffn_dim", 10),
        )
    },
    **{"vocab_size": 97, "d_model": 24, "attention_window": 8},
    **{f"max_{part}_position_embeddings": 80 for part in ("encoder", "decoder")},
}
REFORMER = {
    **{"vocab_size": 97, "hidden_size": 24, "attention_head_size": 8, "num_attention_heads": 3},
    **{"attn_layers": ["local", "lsh"], "num_hidden_layers": 2, "feed_forward_size": 10},
    **{"axial_pos_embds": False, "is_decoder": False, "max_position_embeddings": 80},
    **{"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4, "hash_seed": 0},
}
SPARSE = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}

HEADS = f(3) + 3 * f(8) + 3 * f(8)
LAYER = f(10) + HEADS

MODELS: dict[str, tuple[float, Any]] = {
    "longformer": (
        LAYER,
        lambda: transformers.LongformerModel(
            transformers.LongformerConfig(**BERT, attention_window=8)
        ),
    ),
    "led": (
        LAYER + LAYER + HEADS,
        lambda: transformers.LEDModel(transformers.LEDConfig(**LED)),
    ),
    "big bird": (
        LAYER,
        lambda: transformers.BigBirdModel(transformers.BigBirdConfig(**BERT, **SPARSE)),
    ),
    # Buckets are drawn for each head and each of the dimensions of its queries.
    "reformer": (
        LAYER + f(10) + 3 * f(8),
        lambda: transformers.ReformerModel(transformers.ReformerConfig(**REFORMER)),
    ),
}


LONG = ("big bird", "reformer")
"""Models that take another kind of attention where there are few tokens."""


def tokens(length: int) -> torch.Tensor:
    return torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_called_without_a_mask(name: str) -> None:
    """All but Reformer's queries; a warning about padding is no other way through the model."""
    order, build = MODELS[name]
    model: nn.Module = build().eval()
    symmetry = assert_group_is_sound(model, (tokens(64 if name in LONG else 16),))
    assert symmetry.log10_order() == pytest.approx(order)
    assert not any("looks at data" in note for note in symmetry.notes)


def test_tokens_for_all_by_a_third_mark_in_the_mask() -> None:
    """Their queries and keys are others; their values have the units of the values."""
    order, build = MODELS["longformer"]
    model, ids = build().eval(), tokens(16)
    mask = torch.ones_like(ids)
    symmetry = assert_group_is_sound(model, (ids, mask))
    assert symmetry.log10_order() == pytest.approx(order + 3 * f(8))
    mask[:, :2], mask[1, 9:] = 2, 0
    assert_group_is_sound(model, (ids, mask), symmetry=symmetry)
