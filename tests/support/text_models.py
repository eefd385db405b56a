"""Language models of transformers from small configurations, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

Inputs = dict[str, Tensor]

WIDTH, HEADS, HIDDEN, LAYERS, VOCABULARY = 24, 3, 40, 2, 53

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
CAUSAL: dict[str, Any] = {**COMMON, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
GROUPED: dict[str, Any] = {
    **CAUSAL,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tokens() -> Inputs:
    """Ids in no order, none of them padding, and a mask that sees them all."""
    ids = (torch.arange(14).view(2, 7) * 11) % (VOCABULARY - 3) + 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def both_sides() -> Inputs:
    """As `tokens`, for an encoder and a decoder."""
    return {**tokens(), "decoder_input_ids": tokens()["input_ids"].flip(0)[:, :5].contiguous()}


Builder = Callable[[str], tuple[nn.Module, Inputs]]


def _text(
    model: Any, config: Any, inputs: Callable[[], Inputs] = tokens, **options: Any
) -> Builder:
    def build(attention: str) -> tuple[nn.Module, Inputs]:
        made = config(**options)
        made._attn_implementation = attention
        return model(made).eval(), inputs()

    return build


TEXT: dict[str, Builder] = {
    "gpt2": _text(
        t.GPT2LMHeadModel,
        t.GPT2Config,
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        use_cache=False,
    ),
    "bert": _text(t.BertModel, t.BertConfig, **COMMON),
    "bert for classes": _text(t.BertForSequenceClassification, t.BertConfig, **COMMON),
    "roberta": _text(t.RobertaModel, t.RobertaConfig, **{**COMMON, "pad_token_id": 1}),
    "distilbert": _text(
        t.DistilBertModel,
        t.DistilBertConfig,
        vocab_size=VOCABULARY,
        dim=WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        max_position_embeddings=32,
    ),
    "albert": _text(t.AlbertModel, t.AlbertConfig, **COMMON, embedding_size=16),
    "electra": _text(t.ElectraModel, t.ElectraConfig, **COMMON, embedding_size=16),
    "deberta-v2": _text(
        t.DebertaV2Model,
        t.DebertaV2Config,
        **COMMON,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
    ),
    "t5": _text(
        t.T5ForConditionalGeneration,
        t.T5Config,
        both_sides,
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=8,
        d_ff=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        use_cache=False,
        decoder_start_token_id=0,
    ),
    "bart": _text(
        t.BartModel,
        t.BartConfig,
        both_sides,
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        max_position_embeddings=32,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    ),
    "llama": _text(t.LlamaForCausalLM, t.LlamaConfig, **GROUPED),
    "mistral": _text(t.MistralForCausalLM, t.MistralConfig, **GROUPED, sliding_window=4),
    "qwen2": _text(t.Qwen2ForCausalLM, t.Qwen2Config, **GROUPED),
    "qwen3": _text(t.Qwen3ForCausalLM, t.Qwen3Config, **GROUPED, head_dim=8),
    "gemma3": _text(
        t.Gemma3ForCausalLM,
        t.Gemma3TextConfig,
        **GROUPED,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": _text(t.Phi3ForCausalLM, t.Phi3Config, **GROUPED),
    "falcon": _text(
        t.FalconForCausalLM,
        t.FalconConfig,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt-neox": _text(t.GPTNeoXForCausalLM, t.GPTNeoXConfig, **CAUSAL, rotary_pct=0.25),
    "opt": _text(
        t.OPTForCausalLM,
        t.OPTConfig,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=HIDDEN,
        max_position_embeddings=32,
        word_embed_proj_dim=WIDTH,
        use_cache=False,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    ),
    "bloom": _text(
        t.BloomForCausalLM,
        t.BloomConfig,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mamba": _text(
        t.MambaForCausalLM,
        t.MambaConfig,
        lambda: {"input_ids": tokens()["input_ids"]},
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        state_size=5,
        use_cache=False,
    ),
    "mixtral": _text(
        t.MixtralForCausalLM,
        t.MixtralConfig,
        **GROUPED,
        num_local_experts=3,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen2-moe": _text(
        t.Qwen2MoeForCausalLM,
        t.Qwen2MoeConfig,
        **GROUPED,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=16,
    ),
    "qwen3-moe": _text(
        t.Qwen3MoeForCausalLM,
        t.Qwen3MoeConfig,
        **GROUPED,
        head_dim=8,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
    ),
}
