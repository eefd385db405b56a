"""Fused attention: softmax(q k^T) v."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Field, Value, pinned_value
from fxrebasin.passes.fields.patterns import Pattern, pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import pin_everything, rule

_SCORES = pattern("... q d, ... k d -> ... q k")
_SUMS = pattern("... q k, ... k e -> ... q e")
_OF_GROUPS = {
    _SCORES: pattern("... (h g) q d, ... h k d -> ... (h g) q k"),
    _SUMS: pattern("... (h g) q k, ... h k e -> ... (h g) q e"),
}


@rule(
    *("_scaled_dot_product_flash_attention.default", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_attention_math", "scaled_dot_product_attention"),
)
def scaled_dot_product_attention(call: Call) -> Sequence[Value]:
    """Heads are tied; the query's dims to the key's; the output has the value's dims."""
    query, key, value = (call.value(name) for name in ("query", "key", "value"))
    if call.args.get("dropout_p") or min(len(item.shape) for item in (query, key, value)) < 3:
        return pin_everything("random mask, or no axis of heads")(call)
    batch = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    heads = max(query.shape[-3], key.shape[-3])
    shape = (*batch, heads, query.shape[-2], key.shape[-2])
    scores = _product(call, _SCORES, query, key, shape)
    masked = Value(shape, (*scores.fields, *_masks(call, shape)))
    weights = call.join(call.with_statistics(masked, range(len(shape) - 1)), shape)
    out = _product(call, _SUMS, weights, value, call.shape)
    return [out, *(_saved(call, extra, weights) for extra in call.outputs[1:])]


def _product(call: Call, plain: Pattern, many: Value, few: Value, shape: Sequence[int]) -> Value:
    """Each head meets its own of the other operand, or each group of heads meets one of several.

    A single head is broadcast to all, and so is the batch.
    """
    heads = few.shape[-3]
    if 1 < heads < many.shape[-3]:
        groups = many.shape[-3] // heads
        return call.follow(_OF_GROUPS[plain], many, few, shape=shape, g=groups)
    return call.follow(plain, many, few, shape=shape)


def _saved(call: Call, extra: Tensor, weights: Value) -> Value:
    """An output for the backward pass: the weights, their sums, or states of a generator."""
    shape = tuple(extra.shape)
    if shape == weights.shape:
        return weights
    if shape == weights.shape[:-1]:
        return Value(shape, tuple(call.reduced(weights, range(len(shape)))))
    if extra.numel() and extra.is_floating_point():
        pin_everything("sums of scores in another layout")(call)
    return pinned_value(shape, f"work space of {call.op}")


def _masks(call: Call, shape: Sequence[int]) -> list[Field]:
    """What is laid over the scores: a mask, and the order of the positions."""
    fields: list[Field] = []
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    if mask is not None:
        fields += call.broadcast(call.lookup(mask), len(shape))
    if call.args.get("is_causal"):
        order = pinned_value(shape, f"causal mask of {call.op}").fields
        fields += [item for item in order if item.axes[0] >= len(shape) - 2]
    return fields
