"""Moving tensor elements: exact copies of any dtype, in the memory layout of the original."""

from __future__ import annotations

import numpy as np
import torch

from fxrebasin.layout import AxisGroup, IntArray
from fxrebasin.sharding import cut_like, is_sharded, own_part, whole

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def storage_identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """A key that two tensors share exactly when they are the same view of the same memory."""
    return (
        own_part(tensor).untyped_storage()._cdata,
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
    )


def identity_of(tensor: torch.Tensor) -> object:
    """Equal for tensors that are one tensor, or the same view of the same memory.

    Args:
        tensor: any, also of a layout without storage.
    """
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return id(tensor)
    try:
        return storage_identity(tensor)
    except (RuntimeError, NotImplementedError):  # a subclass that wraps others
        return id(tensor)


def permuted(
    tensor: torch.Tensor, groups: tuple[AxisGroup, ...], indices: list[IntArray]
) -> torch.Tensor:
    """A copy with each group gathered, in the strides of the input, and cut as it is if sharded."""
    if is_sharded(tensor):
        return cut_like(permuted(whole(tensor), groups, indices), tensor)
    tensor = tensor.resolve_conj().resolve_neg()
    # Integers of the same width: they move bit for bit, and float8 has no gather of its own.
    bits = tensor.view(_INTEGER_OF_SIZE.get(tensor.element_size(), tensor.dtype))
    moved = bits
    for group, index in zip(groups, indices, strict=True):
        if not np.array_equal(index, np.arange(len(index))):
            moved = _gathered(moved, group.axes, torch.from_numpy(index).to(bits.device))
    if moved is bits or moved.stride() != bits.stride():
        moved = _like(bits).copy_(moved)
    return moved.view(tensor.dtype)


def _gathered(tensor: torch.Tensor, axes: tuple[int, ...], index: torch.Tensor) -> torch.Tensor:
    """Gather along one axis, or along several taken together."""
    if len(axes) == 1:
        return tensor.index_select(axes[0], index)
    front = tuple(range(len(axes)))
    together = tensor.movedim(axes, front)
    flat = together.reshape(-1, *together.shape[len(axes) :]).index_select(0, index)
    return flat.view(together.shape).movedim(front, axes)


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Empty memory with the strides of a tensor, unless its elements overlap."""
    reached = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reached:
            return torch.empty_like(tensor, memory_format=torch.contiguous_format)
        reached = max(reached, stride * size)
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
