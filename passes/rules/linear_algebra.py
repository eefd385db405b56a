"""Decompositions and inverses of matrices, which depend on the order of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Field, Value, pinned_value, place
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.registry import Call, rule


@rule(
    *("linalg_cholesky_ex", "linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "_linalg_eigh"),
    *("_linalg_svd", "linalg_qr", "linalg_lu_factor_ex", "linalg_matrix_exp"),
)
def of_matrices(call: Call) -> Sequence[Value]:
    """Each matrix of a batch by itself: its axes are pinned, those of the batch pass."""
    value = call.lookup(call.tensors()[0])
    batch = range(len(value.shape) - 2)
    matrix = range(len(batch), len(value.shape))
    kept = call.ledger.reduce(call.pin_axes(value, matrix, "row or column"), batch)
    return [_of_batch(call, kept, tuple(out.shape), len(batch)) for out in call.outputs]


def _of_batch(call: Call, kept: Sequence[Field], shape: tuple[int, ...], batch: int) -> Value:
    if 0 in shape:
        return Value(shape)
    passed = [place(pick_axes(item, range(batch)), range(batch), len(shape)) for item in kept]
    rigid = pinned_value(shape, f"row or column of {call.op}").fields
    return Value(shape, (*passed, *(item for item in rigid if item.axes[0] >= batch)))
