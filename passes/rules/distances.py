"""Distances between all pairs of rows."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.contraction import contract
from fxrebasin.passes.rules.registry import Call, rule


@rule("_cdist_forward")
def distances(call: Call) -> Sequence[Value]:
    """`[*batch, n, m], [*batch, r, m] -> [*batch, n, r]`, in whatever order the last axes are."""
    ndim = len(call.shape)
    batch = " ".join(f"b{axis}" for axis in range(ndim - 2))
    operands = [
        Value((*[1] * (ndim - len(value.shape)), *value.shape), tuple(call.broadcast(value, ndim)))
        for value in (call.value("x1"), call.value("x2"))
    ]
    text = f"{batch} n m, {batch} r m -> {batch} n r"
    return [contract(call.ledger, text, operands, call.shape)]
