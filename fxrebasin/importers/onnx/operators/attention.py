"""Attention, and rotary embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.heads import (
    capped,
    hiding,
    merged_heads,
    repeated_heads,
    rotated,
    scores_of,
    shares,
    split_heads,
)
from fxrebasin.importers.onnx.operators.control import Body
from fxrebasin.importers.onnx.registry import UnsupportedError, operator

_RAW, _CAPPED, _WITH_BIAS, _SHARES = range(4)


@operator("Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = _RAW,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With caches of keys and values that grow, or have room at the end."""
    packed = query.ndim == 3
    if packed:
        if q_num_heads is None or kv_num_heads is None:
            raise UnsupportedError("Attention on packed heads without their number")
        query = split_heads(query, q_num_heads)
        key, value = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    keys, values = (repeated_heads(item, query.shape[1]) for item in (key, value))
    window = (left_window_size, 0 if is_causal else right_window_size)
    bias = _bias(query, keys.shape[2], mask, window, past, lengths)
    raw = scores_of(query, keys, scale)
    scores = capped(raw, softcap)
    biased = scores if bias is None else scores + bias
    kind = query.dtype if softmax_precision is None else dtype_of(softmax_precision)
    wide_bias = None if bias is None else bias.to(kind)
    found = shares(scores.to(kind), wide_bias).to(query.dtype)
    shown = {_RAW: scores, _CAPPED: scores, _WITH_BIAS: biased, _SHARES: found}
    result = found @ values
    result = merged_heads(result) if packed else result
    return result, key, value, shown[qk_matmul_output_mode]


def _bias(
    query: Tensor,
    steps: int,
    mask: Tensor | None,
    window: tuple[int, int],
    past: int,
    lengths: Tensor | None,
) -> Tensor | None:
    """What is added to the scores: the mask, a window around each query, and unused room."""
    parts = []
    if mask is not None:
        short = steps - mask.shape[-1]
        if mask.dtype is torch.bool:
            mask = hiding(F.pad(mask, [0, short], value=False), query.dtype)
        else:
            mask = F.pad(mask, [0, short], value=-math.inf)
        parts.append(mask)
    left, right = window
    if left >= 0 or right >= 0:
        places = torch.arange(query.shape[2]).unsqueeze(1) - torch.arange(steps) + past
        if lengths is not None and past == 0:
            places = places + (lengths.reshape(-1, 1, 1, 1) - query.shape[2])
        allowed = torch.ones_like(places, dtype=torch.bool)
        if left >= 0:
            allowed = allowed & (places <= left)
        if right >= 0:
            allowed = allowed & (-places <= right)
        parts.append(hiding(allowed, query.dtype))
    if lengths is not None:
        used = torch.arange(steps) < lengths.reshape(-1, 1, 1, 1)
        parts.append(hiding(used, query.dtype))
    found = None
    for part in parts:
        found = part if found is None else found + part
    return found


@operator("RotaryEmbedding")
def rotary_embedding(
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    places: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Tables of angles for all positions, or for each of the input."""
    packed = value.ndim == 3
    if packed:
        value = split_heads(value, num_heads)
    if places is not None:
        cos, sin = F.embedding(places, cos), F.embedding(places, sin)
    size = rotary_embedding_dim or value.shape[-1]
    found = rotated(value, cos.unsqueeze(1), sin.unsqueeze(1), bool(interleaved), size)
    return merged_heads(found) if packed else found


@operator("FlexAttention", domain="ai.onnx.preview")
def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    score_mod: Body | None = None,
    prob_mod: Body | None = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """With functions of the file on scores and shares."""
    keys, values = (repeated_heads(item, query.shape[1]) for item in (key, value))
    wide = torch.promote_types(query.dtype, torch.float32)
    wide = wide if softmax_precision is None else dtype_of(softmax_precision)
    scores = scores_of(query, keys, scale).to(wide)
    scores = scores if score_mod is None else score_mod(scores)[0]
    found = torch.softmax(scores, -1)
    found = found if prob_mod is None else prob_mod(found)[0]
    return (found @ values.to(wide)).to(value.dtype)


@operator("LinearAttention")
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Step by step, with a state of keys times values."""
    wide = torch.promote_types(query.dtype, torch.float32)
    queries = split_heads(query, q_num_heads).to(wide)
    keys, values = (split_heads(item, kv_num_heads).to(wide) for item in (key, value))
    batch, heads, steps, size = keys.shape
    factor = scale or 1 / math.sqrt(queries.shape[-1])
    state = keys.new_zeros(batch, heads, size, values.shape[-1])
    state = state if past is None else past.to(wide)
    rates = None if beta is None else beta.transpose(1, 2).unsqueeze(-1).to(wide)
    fading = None if decay is None else split_heads(decay, kv_num_heads).to(wide).exp()
    found = []
    for step in range(steps):
        k, v = keys[:, :, step], values[:, :, step]
        if fading is not None and "gated" in update_rule:
            state = state * fading[:, :, step].unsqueeze(-1)
        if rates is not None and "delta" in update_rule:
            known = (state * k.unsqueeze(-1)).sum(-2)
            v = rates[:, :, step] * (v - known)
        state = state + k.unsqueeze(-1) * v.unsqueeze(-2)
        read = repeated_heads(state, q_num_heads)
        found.append((queries[:, :, step].unsqueeze(-1) * read).sum(-2) * factor)
    result = merged_heads(torch.stack(found, 2)).to(query.dtype)
    return result, state.to(query.dtype if past is None else past.dtype)
