"""Models of libraries with few parameters, so that their Jacobian can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

WORDS, LENGTH = 29, 5
_COMMON: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 5,
    "vocab_size": WORDS,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
_PLACED = {**_COMMON, "max_position_embeddings": LENGTH}
_LABELLED = {**_PLACED, "num_labels": 3}
_EPSILONS = ("eps", "variance_epsilon", "layer_norm_eps", "epsilon")

Batch = Callable[[int, int], Sequence[Tensor]]
Counted = tuple[nn.Module, Batch]


def texts(count: int, seed: int) -> Sequence[Tensor]:
    """Ids of words."""
    gen = torch.Generator().manual_seed(seed)
    return (torch.randint(0, WORDS, (count, LENGTH), generator=gen),)


def images(side: int) -> Batch:
    """Images with three channels."""

    def drawn(count: int, seed: int) -> Sequence[Tensor]:
        gen = torch.Generator().manual_seed(seed)
        return (torch.randn(count, 3, side, side, generator=gen, dtype=torch.float64),)

    return drawn


def _text(model: Any, config: Any, **options: Any) -> Callable[[], Counted]:
    return lambda: (model(config(**{**_COMMON, **options})), texts)


def _timm(side: int, module: str, name: str, **options: Any) -> Callable[[], Counted]:
    def build() -> Counted:
        from fxrebasin.models.torchvision_shim import ensure_torchvision

        ensure_torchvision()
        import timm.models

        return getattr(getattr(timm.models, module), name)(**options), images(side)

    return build


_SWIN = {"img_size": 16, "patch_size": 4, "embed_dim": 4, "window_size": 2, "num_classes": 3}
COUNTED: dict[str, Callable[[], Counted]] = {
    "Gemma": _text(
        t.GemmaForCausalLM,
        t.GemmaConfig,
        num_key_value_heads=2,
        head_dim=4,
        tie_word_embeddings=False,
    ),
    "Gemma 2": _text(
        t.Gemma2ForCausalLM,
        t.Gemma2Config,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=False,
        sliding_window=3,
    ),
    "Gemma 3": _text(
        t.Gemma3ForCausalLM,
        t.Gemma3TextConfig,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=False,
        sliding_window=3,
    ),
    "Qwen 2": _text(t.Qwen2ForCausalLM, t.Qwen2Config, num_key_value_heads=2),
    "Qwen 3": _text(t.Qwen3ForCausalLM, t.Qwen3Config, num_key_value_heads=1, head_dim=4),
    "Phi": _text(t.PhiForCausalLM, t.PhiConfig, **_PLACED, partial_rotary_factor=0.5),
    "Phi 3": _text(t.Phi3ForCausalLM, t.Phi3Config, **_PLACED, num_key_value_heads=1),
    "GPT-NeoX": _text(t.GPTNeoXForCausalLM, t.GPTNeoXConfig, **_PLACED, rotary_pct=1.0),
    "Falcon": _text(t.FalconForCausalLM, t.FalconConfig, multi_query=True, ffn_hidden_size=5),
    "Falcon, many heads": _text(
        t.FalconForCausalLM,
        t.FalconConfig,
        new_decoder_architecture=True,
        num_kv_heads=1,
        bias=True,
        ffn_hidden_size=5,
    ),
    "MPT": _text(
        t.MptForCausalLM,
        t.MptConfig,
        d_model=8,
        n_heads=2,
        n_layers=1,
        expansion_ratio=1,
        max_seq_len=8,
        tie_word_embeddings=False,
    ),
    "OPT": _text(t.OPTForCausalLM, t.OPTConfig, **_PLACED, ffn_dim=5, word_embed_proj_dim=8),
    "BERT": _text(t.BertForSequenceClassification, t.BertConfig, **_LABELLED, type_vocab_size=1),
    "RoBERTa": _text(
        t.RobertaForSequenceClassification,
        t.RobertaConfig,
        **{**_LABELLED, "max_position_embeddings": LENGTH + 2},
        type_vocab_size=1,
    ),
    "ALBERT": _text(
        t.AlbertForSequenceClassification,
        t.AlbertConfig,
        **{**_LABELLED, "num_hidden_layers": 2},
        embedding_size=4,
    ),
    "DeBERTa": _text(
        t.DebertaV2ForSequenceClassification,
        t.DebertaV2Config,
        **_LABELLED,
        relative_attention=True,
        position_buckets=3,
        pos_att_type=["p2c", "c2p"],
        pooler_hidden_size=8,
    ),
    "Mamba": _text(
        t.MambaForCausalLM,
        t.MambaConfig,
        hidden_size=6,
        state_size=3,
        expand=2,
        conv_kernel=3,
        time_step_rank=2,
        tie_word_embeddings=False,
    ),
    "Swin": _timm(16, "swin_transformer", "SwinTransformer", **_SWIN, depths=(2,), num_heads=(2,)),
}


def counted_model(name: str) -> Counted:
    """A model in double precision, at numbers that have nothing special about them, and inputs.

    The sizes of what norms divide by count, and all words have a derivative.
    """
    net, batch = COUNTED[name]()
    net = net.double().eval()
    gen = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
        for attribute in _EPSILONS:
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.3)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=gen, dtype=torch.float64)
                factor = tensor.dim() == 1 and key.endswith("weight")
                tensor.copy_(noise.abs() + 0.5 if key.endswith("var") else 0.6 * noise + factor)
    return net, batch
