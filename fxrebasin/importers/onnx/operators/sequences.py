"""Sequences of tensors, which are lists here, and optional values, which may be None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.importers.onnx.operators.control import Body
from fxrebasin.importers.onnx.registry import (
    UnsupportedError,
    numbers,
    operator,
    operators,
    whole,
)

operators(
    {
        "SequenceConstruct": lambda *values: (list(values),),
        "SequenceLength": lambda values: torch.tensor(len(values)),
        "OptionalHasElement": lambda value=None: torch.tensor(value is not None),
    }
)


@operator("SequenceAt", reads=(1,))
def at(values: Sequence[Tensor], place: Tensor) -> Tensor:
    """One of the tensors."""
    return values[whole(place)]


@operator("SequenceEmpty")
def empty(*, dtype: int = 1) -> tuple[list[Tensor]]:
    """No tensors."""
    return ([],)


@operator("SequenceInsert", reads=(2,))
def insert(
    values: Sequence[Tensor], value: Tensor, place: Tensor | None = None
) -> tuple[list[Tensor]]:
    """One more, by default at the end."""
    found = list(values)
    found.insert(len(found) if place is None else whole(place), value)
    return (found,)


@operator("SequenceErase", reads=(1,))
def erase(values: Sequence[Tensor], place: Tensor | None = None) -> tuple[list[Tensor]]:
    """One less, by default without the last."""
    found = list(values)
    del found[-1 if place is None else whole(place)]
    return (found,)


@operator("SplitToSequence", reads=(1,))
def split_to_sequence(
    value: Tensor, parts: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[list[Tensor]]:
    """In parts of given sizes, of one size, or single slices."""
    if parts is None:
        found = list(torch.split(value, 1, axis))
        return (found if keepdims else [item.squeeze(axis) for item in found],)
    sizes = numbers(parts)
    return (list(torch.split(value, sizes[0] if parts.ndim == 0 else sizes, axis)),)


@operator("ConcatFromSequence")
def concat_from_sequence(values: Sequence[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """One tensor of all, along an axis, or along a new one."""
    return torch.stack(list(values), axis) if new_axis else torch.cat(list(values), axis)


@operator("SequenceMap")
def sequence_map(values: Sequence[Tensor], *others: Any, body: Body) -> tuple[list[Any], ...]:
    """A function of the file on each; other sequences are followed alongside."""
    found: list[list[Any]] = []
    for at, value in enumerate(values):
        given = [item[at] if isinstance(item, list) else item for item in others]
        results = body(value, *given)
        found = found or [[] for _ in results]
        for collected, result in zip(found, results, strict=True):
            collected.append(result)
    return tuple(found)


@operator("Optional")
def optional(value: Any = None, *, type: Any = None) -> tuple[Any]:
    """The value, or none."""
    return (value,)


@operator("OptionalGetElement")
def optional_get_element(value: Any) -> tuple[Any]:
    """The value that has to be there."""
    if value is None:
        raise UnsupportedError("OptionalGetElement of nothing")
    return (value,)
