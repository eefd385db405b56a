"""Fused attention: softmax(q k^T) v."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.rules.contraction import contract
from fxrebasin.passes.rules.registry import Call, rule

from fxrebasin.labels import Value


@rule(
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_attention_math", "scaled_dot_product_attention"),
)
def scaled_dot_product_attention(call: Call) -> Sequence[Value]:
    """Heads are tied; the query's dims to the key's; the output has the value's dims."""
    query, key, value = (call.value(name) for name in ("query", "key", "value"))
    groups = query.shape[-3] // key.shape[-3]
    heads = "(h g)" if groups > 1 else "h"
    lead = "b " if len(query.shape) == 4 else ""
    known = {"g": groups} if groups > 1 else {}
    scores_shape = (*query.shape[:-1], key.shape[-2])
    scores = contract(
        call.ledger,
        f"{lead}{heads} q d, {lead}h k d -> {lead}{heads} q k",
        [query, key],
        scores_shape,
        known,
    )
    mask = call.args.get("attn_mask", call.args.get("attn_bias"))
    fields = list(scores.fields)
    if mask is not None:
        fields += call.broadcast(call.lookup(mask), len(scores_shape))
    if call.args.get("is_causal"):
        masked = call.pin_axes(Value(scores_shape, tuple(fields)), [-2, -1], "causal mask")
        fields = list(masked.fields)
    fields += call.ledger.reduce(
        Value(scores_shape, tuple(fields)), set(range(len(scores_shape) - 1))
    )
    weights = call.join(fields, scores_shape)
    out = contract(
        call.ledger,
        f"{lead}{heads} q k, {lead}h k e -> {lead}{heads} q e",
        [weights, value],
        call.shape,
        known,
    )
    return [out, *(Value(tuple(extra.shape)) for extra in call.outputs[1:])]
