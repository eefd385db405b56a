"""What onnxruntime's optimisers fuse, and its own operators: the domain com.microsoft."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxrebasin.importers.onnx.heads import (
    capped,
    hiding,
    merged_heads,
    repeated_heads,
    rotated,
    split_heads,
)
from fxrebasin.importers.onnx.operators.convolution import convolution
from fxrebasin.importers.onnx.operators.linear import gemm
from fxrebasin.importers.onnx.operators.normalization import root_mean_square
from fxrebasin.importers.onnx.operators.resizing import grid_sample
from fxrebasin.importers.onnx.operators.shapes import triangle
from fxrebasin.importers.onnx.registry import (
    MICROSOFT,
    Site,
    UnsupportedError,
    operator,
    operators,
    whole,
)
from fxrebasin.running.numberless import has_no_data

_NEAR_ZERO = 1e-12
"""What layers that add before they normalise have as epsilon, if they do not say."""


def _fast_gelu(value: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(value if bias is None else value + bias, approximate="tanh")


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    found = torch.matmul(left, right)
    return found if bias is None else found + bias


operators(
    {
        "Gelu": F.gelu,
        "BiasGelu": lambda x, bias: F.gelu(x + bias),
        "FastGelu": _fast_gelu,
        "QuickGelu": lambda x, *, alpha=1.702: x * torch.sigmoid(x * alpha),
        "Inverse": torch.inverse,
        "Trilu": triangle,
        "GridSample": grid_sample,
    },
    MICROSOFT,
)


_ACTIVATIONS: Mapping[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "": (lambda x: x, ()),
    "Relu": (torch.relu, ()),
    "Tanh": (torch.tanh, ()),
    "Sigmoid": (torch.sigmoid, ()),
    "LeakyRelu": (F.leaky_relu, (0.01,)),
    "Clip": (torch.clamp, (-math.inf, math.inf)),
    "HardSigmoid": (lambda x, a, b: torch.clamp(x * a + b, 0, 1), (0.2, 0.5)),
    "HardSwish": (F.hardswish, ()),
    "Elu": (F.elu, (1.0,)),
    "Selu": (lambda x, a, c: c * F.elu(x, a), (1.6732632423543772, 1.0507009873554805)),
    "Softplus": (lambda x: F.softplus(x, threshold=math.inf), ()),
    "Softsign": (F.softsign, ()),
    "ThresholdedRelu": (lambda x, a: torch.where(x > a, x, torch.zeros_like(x)), (1.0,)),
}


def _activated(value: Tensor, name: str, given: Sequence[float | None]) -> Tensor:
    """An activation, with defaults for what is None or missing at the end."""
    if name not in _ACTIVATIONS:
        raise UnsupportedError(f"a fused activation {name}")
    function, defaults = _ACTIVATIONS[name]
    pairs = zip_longest(given[: len(defaults)], defaults)
    return function(value, *[default if item is None else item for item, default in pairs])


@operator("FusedConv", domain=MICROSOFT)
def fused_convolution(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: list[float] | None = None,
    **options: Any,
) -> Tensor:
    """A convolution, something added, and an activation."""
    found = convolution(value, weight, bias, **options)
    found = found if added is None else found + added
    return _activated(found, activation, activation_params or [])


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    left: Tensor,
    right: Tensor,
    added: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    **options: Any,
) -> Tensor:
    """A product, and an activation."""
    second = activation_gamma if activation == "Selu" else activation_beta
    given = (activation_alpha, second)
    return _activated(gemm(left, right, added, **options), activation, given)


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_product(
    left: Tensor,
    right: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Of transposed operands; the axis of the batch may have been moved next to the last."""
    first = _turned(left, bool(transA), bool(transBatchA))
    second = _turned(right, bool(transB), bool(transBatchB))
    found = torch.matmul(first, second)
    return found if alpha == 1 else found * alpha


def _turned(value: Tensor, swap: bool, batch: bool) -> Tensor:
    if value.ndim < 2:
        return value
    if batch:
        value = value.movedim(0, -2)
    return value.transpose(-1, -2) if swap else value


# Normalisations ---------------------------------------------------------------------------------


def _asked(site: Site, *results: Tensor | None) -> tuple[Tensor | None, ...]:
    """Results of which some are for training only, and must not be asked for."""
    return results[: max(site.outputs, 1)]


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    value: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = _NEAR_ZERO,
    site: Site,
) -> tuple[Tensor | None, ...]:
    """Of a sum, which is returned as well."""
    total = value + skip if bias is None else value + skip + bias
    found = F.layer_norm(total, total.shape[-1:], scale, shift, epsilon)
    return _asked(site, found, None, None, total)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(
    value: Tensor,
    skip: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = _NEAR_ZERO,
    site: Site,
) -> tuple[Tensor | None, ...]:
    """The same without means."""
    total = value + skip if bias is None else value + skip + bias
    return _asked(site, root_mean_square(total, scale, epsilon), None, None, total)


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    tokens: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    places: Tensor | None = None,
    *,
    epsilon: float = _NEAR_ZERO,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of embeddings of tokens, positions and segments; also how many tokens count."""
    steps = torch.arange(tokens.shape[1]).unsqueeze(0) if places is None else places
    total = F.embedding(tokens.long(), word_table) + F.embedding(steps.long(), position_table)
    if segments is not None and segment_table is not None:
        total = total + F.embedding(segments.long(), segment_table)
    found = F.layer_norm(total, total.shape[-1:], scale, shift, epsilon)
    if mask is None:
        counts = torch.zeros(tokens.shape[0], dtype=torch.int32)
    else:
        counts = (mask != 0).sum(1).to(torch.int32)
    return found, counts, total


# Attention --------------------------------------------------------------------------------------


def _mask_bias(
    mask: Tensor | None, query: Tensor, steps: int, far: float, causal: bool
) -> Tensor | None:
    """What is added to the scores: marks of tokens, their number, and the future."""
    found = None
    if mask is not None:
        if mask.ndim == 1 and mask.shape[0] != query.shape[0]:
            raise UnsupportedError("an attention mask of starts and ends")
        if mask.ndim == 1:
            allowed = torch.arange(steps) < mask.reshape(-1, 1, 1, 1)
        elif mask.ndim == 2:
            allowed = mask[:, None, None, :] != 0
        elif mask.ndim == 3:
            allowed = mask[:, None] != 0
        else:
            past = steps - query.shape[2]
            allowed = mask[:, :, past : past + query.shape[2], :steps] != 0
        found = hiding(allowed, query.dtype, far)
    if causal:
        past = steps - query.shape[2]
        places = torch.arange(query.shape[2]).unsqueeze(1) + past - torch.arange(steps)
        least = torch.finfo(query.dtype).min
        before = torch.zeros(1, dtype=query.dtype) if found is None else found
        found = torch.where(places >= 0, before, torch.full_like(before, least))
    return found


def _weighted(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    biases: list[Tensor | None],
    softcap: float = 0.0,
) -> Tensor:
    """The values, by how well their keys fit the queries: `[batch, steps, heads * size]`."""
    scores = (query @ key.transpose(-1, -2)) * (scale or 1 / math.sqrt(query.shape[-1]))
    scores = capped(scores, softcap)
    for bias in biases:
        scores = scores if bias is None else scores + bias
    return merged_heads(torch.softmax(scores, -1) @ value)


@operator("Attention", domain=MICROSOFT)
def attention(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    past_length: Tensor | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    rotary_embedding_dim: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[Tensor, Tensor]:
    """With queries, keys and values from one product."""
    if do_rotary or past_present_share_buffer or past_length is not None:
        raise UnsupportedError("Attention with rotary embeddings or a cache that is written to")
    projected = _product(value, weight, bias)
    sizes = qkv_hidden_sizes or [projected.shape[-1] // 3] * 3
    query, key, values = (split_heads(item, num_heads) for item in projected.split(sizes, -1))
    if past is not None:
        key, values = torch.cat([past[0], key], 2), torch.cat([past[1], values], 2)
    known = _mask_bias(mask, query, key.shape[2], mask_filter_value, bool(unidirectional))
    result = _weighted(query, key, values, scale, [known, added])
    return result, torch.stack([key, values]) if key.shape == values.shape else result


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *others: Tensor | None,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """With queries, keys and values apart, or packed head by head."""
    if any(item is not None for item in others):
        raise UnsupportedError("MultiHeadAttention with a cache that is written to")
    queries, keys, values = _three(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        keys, values = torch.cat([past_key, keys], 2), torch.cat([past_value, values], 2)
    known = _mask_bias(mask, queries, keys.shape[2], mask_filter_value, bool(unidirectional))
    return _weighted(queries, keys, values, scale, [known, added]), keys, values


def _three(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, `[batch, heads, steps, size]`."""
    if key is None:
        parts = [item.flatten(2) for item in query.unbind(3)]
    elif value is None:
        parts = [query, *(item.flatten(2) for item in key.unbind(3))]
    else:
        parts = [query, key, value]
    if bias is not None:
        sizes = [
            item.shape[-1] if item.ndim == 3 else item.shape[1] * item.shape[3] for item in parts
        ]
        shifts = bias.split(sizes)
        parts = [
            item + shift
            if item.ndim == 3
            else item + shift.reshape(item.shape[1], 1, item.shape[3])
            for item, shift in zip(parts, shifts, strict=True)
        ]
    query, key, value = (split_heads(x, heads) if x.ndim == 3 else x for x in parts)
    return query, key, value


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    ends: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    places: Tensor | None = None,
    added: Tensor | None = None,
    *others: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    softcap: float = 0.0,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    smooth_softmax: int = 0,
    qk_output: int = 0,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal, with fewer heads of keys than of queries, and a cache that grows."""
    plain = (k_quant_type, v_quant_type) == ("NONE", "NONE") and not kv_cache_bit_width
    if not plain or smooth_softmax == 1 or qk_output or any(o is not None for o in others):
        raise UnsupportedError("GroupQueryAttention with a quantised cache, or head sinks")
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        widths = [num_heads * size, kv_num_heads * size, kv_num_heads * size]
        query, key, value = query.split(widths, -1)
    queries = split_heads(query, num_heads)
    keys, values = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    steps = queries.shape[2]
    used = ends.reshape(-1, 1) + 1
    if do_rotary:
        if cos is None or sin is None:
            raise UnsupportedError("GroupQueryAttention with rotary embeddings without tables")
        start = (used - steps).clamp(min=0) if past_key is not None else used * 0
        at = start + torch.arange(steps) if places is None else places
        c, s = (F.embedding(at, table).unsqueeze(1) for table in (cos, sin))
        queries, keys = (
            rotated(item, c, s, bool(rotary_interleaved), 2 * cos.shape[-1])
            for item in (queries, keys)
        )
    if past_key is not None and past_value is not None:
        keys, values = torch.cat([past_key, keys], 2), torch.cat([past_value, values], 2)
    length = keys.shape[2]
    if not has_no_data(total) and whole(total) != length:
        raise UnsupportedError("GroupQueryAttention with a cache that is written to")
    distance = torch.arange(steps).unsqueeze(1) + (length - steps) - torch.arange(length)
    allowed = distance >= 0
    if local_window_size > 0:
        allowed = allowed & (distance < local_window_size)
    bias = hiding(allowed, queries.dtype)
    every_key, every_value = (repeated_heads(item, num_heads) for item in (keys, values))
    found = _weighted(queries, every_key, every_value, scale, [bias, added], softcap)
    return found, keys, values


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(
    value: Tensor,
    places: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    is_packed_batching: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Positions are given one by one, or by the first."""
    packed = value.ndim == 3
    size = rotary_embedding_dim or 2 * cos.shape[-1]
    if packed:
        value = split_heads(value, num_heads or value.shape[-1] // size)
    steps = torch.arange(value.shape[2])
    at = places.reshape(1, 1) + steps if places.numel() == 1 else places
    c, s = (F.embedding(at, table).unsqueeze(1) for table in (cos, sin))
    found = rotated(value, c, s, bool(interleaved), size)
    return merged_heads(found) if packed else found
