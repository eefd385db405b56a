"""Constant matrices that stay as they are when rows and columns are permuted together."""

from __future__ import annotations

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Labels, Value, onto_axes
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.uniformity import bits_of, has_bits


def with_square_units(ledger: Ledger, tensor: Tensor, value: Value) -> Value:
    """The value of a constant; rows and columns of one like `torch.eye` may move together.

    Args:
        ledger: for the units that rows and columns share.
        tensor: the constant.
        value: what is known of it, where both of its axes are pinned.
    """
    axes = [item.axes[0] for item in value.fields if len(item.axes) == 1]
    if len(axes) != 2 or len(value.fields) != 2 or not _has_one_diagonal(tensor, axes):
        return value
    units = [Labels(ledger.fresh(tensor.shape[axes[0]]), (0,), injective=True)]
    fields = [item for axis in axes for item in onto_axes(units, [axis], tensor.ndim)]
    return Value(value.shape, tuple(fields))


def _has_one_diagonal(tensor: Tensor, axes: list[int]) -> bool:
    """Whether a matrix holds one number on its diagonal and one everywhere else."""
    rows, columns = (tensor.shape[axis] for axis in axes)
    if rows != columns or not has_bits(tensor) or tensor.is_complex():
        return False
    bits = bits_of(tensor).permute(*axes, *(a for a in range(tensor.ndim) if a not in axes))
    matrix = bits.reshape(rows, columns, -1)[:, :, 0]
    beside = matrix[0, 1:]
    if not bool((beside == beside[0]).all()):
        return False
    return torch.equal(
        matrix, beside[0].expand(rows, columns).clone().fill_diagonal_(matrix[0, 0].item())
    )
