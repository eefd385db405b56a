"""Decompositions and inverses of matrices, which depend on the order of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule


@rule(
    *("linalg_cholesky_ex", "linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "_linalg_eigh"),
    *("_linalg_svd", "linalg_qr", "linalg_lu_factor_ex", "linalg_matrix_exp"),
)
def of_matrices(call: Call) -> Sequence[Value]:
    """Each matrix of a batch by itself: its axes are pinned, those of the batch pass."""
    value = call.lookup(call.tensors()[0])
    batch = len(value.shape) - 2
    return [_of_each(call, value, tuple(out.shape), out.ndim - batch) for out in call.outputs]


def _of_each(call: Call, value: Value, shape: tuple[int, ...], rank: int) -> Value:
    """A number, a vector or a matrix of each matrix."""
    found = pattern(f"... !r !c -> ... {' '.join(f'!n{axis}' for axis in range(rank))}")
    if 0 in shape:
        return Value(shape)
    return call.follow(found, value, reason="row or column", shape=shape)
