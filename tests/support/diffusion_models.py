"""Models of diffusers from small configurations, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
Builder = Callable[[], tuple[nn.Module, Inputs]]


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def _steps() -> Tensor:
    return torch.tensor([3.0, 8.0])


def _noise_and_text() -> Inputs:
    return {
        "sample": _normal(2, 4, 8, 8),
        "timestep": _steps(),
        "encoder_hidden_states": _normal(2, 5, 12),
        "return_dict": False,
    }


def _noise_text_and_sizes() -> Inputs:
    added = {"text_embeds": _normal(2, 7), "time_ids": torch.arange(12.0).view(2, 6)}
    return {**_noise_and_text(), "added_cond_kwargs": added}


def _joint() -> Inputs:
    return {
        "hidden_states": _normal(2, 4, 8, 8),
        "encoder_hidden_states": _normal(2, 5, 12),
        "pooled_projections": _normal(2, 10),
        "timestep": _steps(),
        "return_dict": False,
    }


def _packed() -> Inputs:
    return {
        "hidden_states": _normal(2, 16, 8),
        "encoder_hidden_states": _normal(2, 5, 12),
        "pooled_projections": _normal(2, 10),
        "timestep": _steps(),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.tensor([3.5, 3.5]),
        "return_dict": False,
    }


def _images() -> Inputs:
    return {"sample": _normal(1, 3, 16, 16), "return_dict": False}


def _model(model: Any, inputs: Callable[[], Inputs], **options: Any) -> Builder:
    def build() -> tuple[nn.Module, Inputs]:
        return model(**options).eval(), inputs()

    return build


U_NET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}

DIFFUSION: dict[str, Builder] = {
    "u-net of sd 1.5": _model(
        d.UNet2DConditionModel,
        _noise_and_text,
        **U_NET,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    ),
    "u-net of sdxl": _model(
        d.UNet2DConditionModel,
        _noise_text_and_sizes,
        **U_NET,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=7 + 6 * 4,
    ),
    "autoencoder": _model(
        d.AutoencoderKL,
        _images,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ),
    "sd 3": _model(
        d.SD3Transformer2DModel,
        _joint,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=12,
        caption_projection_dim=24,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    ),
    "flux": _model(
        d.FluxTransformer2DModel,
        _packed,
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 4),
    ),
}
