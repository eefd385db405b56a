"""Products with sparse matrices, which are constants: adjacency, incidence, resampling."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.contraction import contract, contraction
from fxrebasin.passes.rules.registry import Call, rule

contraction("n k, k m -> n m", "_sparse_mm.default")


@rule("_sparse_addmm")
def sparse_addmm(call: Call) -> Sequence[Value]:
    """`self + mat1 @ mat2`."""
    operands = [call.value("mat1"), call.value("mat2")]
    product = contract(call.ledger, "n k, k m -> n m", operands, call.shape)
    return [call.join([*product.fields, *call.broadcast(call.value("self"), len(call.shape))])]
