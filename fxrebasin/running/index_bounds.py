"""Indices that are out of range: operators on meta tensors take any, real ones raise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

_Looked: TypeAlias = tuple[torch.Tensor, int]
"""Indices with numbers, and the size of the axis that they are along."""


def check_indices(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise what the operator raises on real tensors if constants among its indices are too large.

    A model may catch that and go another way. Indices without numbers are not looked at.

    Args:
        func: any operator.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        IndexError: an index is out of range; some operators raise a `RuntimeError`.

    Example:
        >>> gather = torch.ops.aten.gather.default
        >>> check_indices(gather, (torch.empty(2, 3, device="meta"), 1, torch.tensor([[2]])), {})
        >>> check_indices(gather, (torch.empty(2, 3, device="meta"), 1, torch.tensor([[3]])), {})
        Traceback (most recent call last):
        RuntimeError: index 3 is out of bounds for dimension 1 with size 3
    """
    if any(_may_be_out(indices, size) for indices, size in _looked_up(func, args)):
        func(*map(_with_numbers, args), **{k: _with_numbers(v) for k, v in kwargs.items()})


def _may_be_out(indices: torch.Tensor, size: int) -> bool:
    if indices.is_meta or indices.numel() == 0 or indices.is_floating_point():
        return False
    low, high = indices.aminmax()
    return int(low) < 0 or int(high) >= size


def _looked_up(func: torch._ops.OpOverload, args: Sequence[Any]) -> Iterator[_Looked]:
    """The indices of an operator, each with the size of its axis."""
    if func in _ALONG_ROWS:
        yield args[1], args[0].shape[0]
    elif func in _ALONG_AN_AXIS and args[0].dim():
        yield args[2], args[0].shape[args[1]]
    elif func in _OF_CLASSES and args[0].dim():
        yield args[1], args[0].shape[min(1, args[0].dim() - 1)]
    elif func in _FLAT:
        yield args[1], args[0].numel()
    elif func in _ALONG_AXES:
        axis = 0
        for indices in args[1]:
            mask = isinstance(indices, torch.Tensor) and indices.dtype in (torch.bool, torch.uint8)
            if isinstance(indices, torch.Tensor) and not mask:
                yield indices, args[0].shape[axis]
            axis += indices.dim() if mask else 1


def _with_numbers(value: Any) -> Any:
    """An argument, with zeros in the place of numbers that are not known."""
    if isinstance(value, list | tuple):
        return [_with_numbers(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    return torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else value.cpu()


def _overloads(*names: str) -> frozenset[torch._ops.OpOverload]:
    packets = [getattr(torch.ops.aten, name) for name in names]
    found = [(packet, overload) for packet in packets for overload in packet.overloads()]
    return frozenset(
        getattr(packet, overload)
        for packet, overload in found
        if "out" not in overload and "dimname" not in overload
    )


_ALONG_ROWS = _overloads("embedding", "_embedding_bag", "_embedding_bag_forward_only")
_OF_CLASSES = _overloads("nll_loss", "nll_loss_forward", "nll_loss2d", "nll_loss2d_forward")
_FLAT = _overloads("take")
_ALONG_AN_AXIS = _overloads(
    *("gather", "index_select", "scatter", "scatter_", "scatter_add", "scatter_add_"),
    *("scatter_reduce", "scatter_reduce_", "index_add", "index_add_", "index_copy"),
    *("index_copy_", "index_fill", "index_fill_", "index_reduce", "index_reduce_"),
)
_ALONG_AXES = _overloads("index", "index_put", "index_put_")
