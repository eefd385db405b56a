"""Constant matrices that stay as they are when rows and columns are permuted together."""

from __future__ import annotations

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Labels, Value
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.uniformity import bits_of


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
    units = ledger.fresh(tensor.shape[axes[0]])
    fields = []
    for axis in axes:
        shape = [-1 if other == axis else 1 for other in range(tensor.ndim)]
        fields.append(Labels(units.view(shape), (axis,), injective=True))
    return Value(value.shape, tuple(fields))


def _has_one_diagonal(tensor: Tensor, axes: list[int]) -> bool:
    """Whether a matrix holds one number on its diagonal and one everywhere else."""
    rows, columns = (tensor.shape[axis] for axis in axes)
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    if rows != columns or not plain or tensor.is_complex():
        return False
    bits = bits_of(tensor).permute(*axes, *(a for a in range(tensor.ndim) if a not in axes))
    matrix = bits.reshape(rows, columns, -1)[:, :, 0]
    beside = matrix[0, 1:]
    if not bool((beside == beside[0]).all()):
        return False
    return torch.equal(
        matrix, beside[0].expand(rows, columns).clone().fill_diagonal_(matrix[0, 0].item())
    )
