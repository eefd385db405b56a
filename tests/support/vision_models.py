"""Vision and speech models of transformers from small configurations, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Builder = Callable[[str], tuple[nn.Module, Inputs]]

WIDTH, HEADS, HIDDEN, LAYERS = 24, 3, 40, 2

COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
IMAGES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_labels": 5}


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def images(size: int = 16) -> Callable[[], Inputs]:
    """Two square images."""
    return lambda: {"pixel_values": _normal(2, 3, size, size)}


def images_and_text() -> Inputs:
    """Two images and two texts, each of which ends with the largest id."""
    ids = torch.tensor([[5, 9, 3, 11, 52], [7, 4, 12, 8, 52]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images()()}


def spectrogram() -> Inputs:
    """Mel features of two recordings, and the tokens that were heard so far."""
    ids = torch.tensor([[5, 9, 3], [7, 4, 12]])
    return {"input_features": _normal(2, 8, 20), "decoder_input_ids": ids}


def _model(model: Any, config: Any, inputs: Callable[[], Inputs], **options: Any) -> Builder:
    def build(attention: str) -> tuple[nn.Module, Inputs]:
        made = config(**options)
        made._attn_implementation = attention
        return model(made).eval(), inputs()

    return build


TEXT_TOWER: dict[str, Any] = {
    **COMMON,
    "vocab_size": 53,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 8,
    "bos_token_id": 51,
    "eos_token_id": 52,
    "pad_token_id": 1,
}
IMAGE_TOWER: dict[str, Any] = {
    **COMMON,
    "intermediate_size": HIDDEN,
    "image_size": 16,
    "patch_size": 4,
}

VISION: dict[str, Builder] = {
    "vit": _model(t.ViTForImageClassification, t.ViTConfig, images(), **IMAGE_TOWER, num_labels=5),
    "deit": _model(
        t.DeiTForImageClassification, t.DeiTConfig, images(), **IMAGE_TOWER, num_labels=5
    ),
    "beit": _model(
        t.BeitForImageClassification,
        t.BeitConfig,
        images(),
        **IMAGE_TOWER,
        num_labels=5,
        use_relative_position_bias=True,
        layer_scale_init_value=0.1,
        out_indices=[1],
    ),
    "dinov2": _model(
        t.Dinov2ForImageClassification,
        t.Dinov2Config,
        images(),
        **COMMON,
        **IMAGES,
        mlp_ratio=2,
    ),
    "dinov2 with gates": _model(
        t.Dinov2ForImageClassification,
        t.Dinov2Config,
        images(),
        **COMMON,
        **IMAGES,
        mlp_ratio=2,
        use_swiglu_ffn=True,
    ),
    "swin": _model(
        t.SwinForImageClassification,
        t.SwinConfig,
        images(),
        image_size=16,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 3],
        window_size=4,
        mlp_ratio=2.0,
        num_labels=5,
    ),
    "clip": _model(
        t.CLIPModel,
        t.CLIPConfig,
        images_and_text,
        text_config=TEXT_TOWER,
        vision_config=IMAGE_TOWER,
        projection_dim=10,
    ),
    "siglip": _model(
        t.SiglipModel,
        t.SiglipConfig,
        images_and_text,
        text_config={**TEXT_TOWER, "projection_size": WIDTH},
        vision_config=IMAGE_TOWER,
    ),
    "segformer": _model(
        t.SegformerForSemanticSegmentation,
        t.SegformerConfig,
        images(32),
        num_encoder_blocks=2,
        depths=[1, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 12],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[2, 3],
        mlp_ratios=[2, 2],
        decoder_hidden_size=10,
        num_labels=5,
    ),
    "detr": _model(
        t.DetrForObjectDetection,
        t.DetrConfig,
        lambda: {**images(64)(), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)},
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=t.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], out_features=["stage2"]
        ),
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        num_queries=7,
        num_labels=5,
    ),
    "whisper": _model(
        t.WhisperForConditionalGeneration,
        t.WhisperConfig,
        spectrogram,
        vocab_size=53,
        num_mel_bins=8,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        max_source_positions=10,
        max_target_positions=8,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    ),
    "wav2vec2": _model(
        t.Wav2Vec2ForCTC,
        t.Wav2Vec2Config,
        lambda: {"input_values": _normal(2, 400)},
        **COMMON,
        vocab_size=11,
        intermediate_size=HIDDEN,
        conv_dim=(8, 10),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=3,
        num_feat_extract_layers=2,
        apply_spec_augment=False,
    ),
}
