"""Concatenation: pieces of an axis that keep units of their own."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule


@rule("cat", "concat")
def concatenate(call: Call) -> Sequence[Value]:
    """Pieces along an axis that they all have; empty ones are left out."""
    if 0 in call.shape:
        return [Value(call.shape)]
    tensors = [t for t in call.args["tensors"] if not (t.ndim == 1 and t.numel() == 0)]
    dim = call.args["dim"] % max(len(call.shape), 1)
    pieces = [tensor for tensor in tensors if tensor.shape[dim]] or tensors
    values = [call.lookup(tensor) for tensor in pieces]
    return [call.side_by_side(values, dim)]


@rule("stack")
def stack(call: Call) -> Sequence[Value]:
    """Pieces along a new axis."""
    tensors = call.args["tensors"]
    dim = call.args["dim"] % len(call.shape)
    values = []
    for tensor in tensors:
        value = call.lookup(tensor)
        (fields,) = call.view(value, lambda labels: labels.unsqueeze(dim))
        shape = (*value.shape[:dim], 1, *value.shape[dim:])
        values.append(Value(shape, fields))
    return [call.side_by_side(values, dim)]
