"""Attention over other axes than batch and heads, which torch's ONNX exporter does not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_RANK = 4


def is_attention_of_other_rank(node: fx.Node) -> bool:
    """Whether a node is attention whose query has not four axes (windows of images have five)."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    query = node.args[0] if node.target is attention else None
    return isinstance(query, fx.Node) and query.meta["val"].ndim != _RANK


def attention_of_four(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    """The same attention, with the first axes of all tensors as one, or new ones of size 1.

    Args:
        query: `[..., heads, length, width]`, and so on for key and value.
        attn_mask: broadcast to `[..., heads, length, other length]`.
        dropout_p: 0, for a model in eval mode.
        is_causal: whether later positions are hidden.
        rest: scale, and whether heads share keys.
    """
    tensors = (query, key, value)
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in tensors))
    q, k, v = (_with_four(t, lead) for t in tensors)
    mask = attn_mask
    if mask is not None and mask.ndim >= _RANK:
        mask = _with_four(mask, lead)
    found = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, dropout_p, is_causal, **rest
    )
    return found.reshape(
        *torch.broadcast_shapes(*(t.shape[:-2] for t in tensors)), *found.shape[-2:]
    )


def _with_four(tensor: Tensor, lead: torch.Size) -> Tensor:
    if tensor.ndim < _RANK:
        return tensor[(None,) * (_RANK - tensor.ndim)]
    return tensor.expand(*lead, *tensor.shape[-3:]).reshape(-1, *tensor.shape[-3:])
