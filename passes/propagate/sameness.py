"""Which whole numbers are the same as others, whatever they are.

Two look-ups with the same numbers choose the same rows. A model may pass one index on, in other
shapes, or compute it twice in the same way from the same tensors, as exporters do where they write
down how negative numbers count from the end.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.passes.fields.slices import Numbers, rows_in
from fxrebasin.passes.propagate.memory import Memory
from fxrebasin.passes.propagate.tracks import Track, placed_in_root
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.movement import reshape
from fxrebasin.passes.rules.numbers import copied
from fxrebasin.passes.rules.registry import RULES
from fxrebasin.running.operators import viewed_by, writes

_COMPARED_AT_MOST = 64
"""The largest constant, in elements, that is told by its numbers."""

_SETTINGS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = (bool, int, float, str, type(None), *_SETTINGS)


class Sameness:
    """Knows tensors that operators computed in the same way from the same tensors."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._found: dict[Hashable, Hashable] = {}

    def of(self, tensor: Tensor) -> Numbers | None:
        """What is known of the numbers in a tensor; None of constants and of what others see."""
        track = self._memory.find(tensor)
        if track is None or self._memory.is_exposed(tensor):
            return None
        placed = placed_in_root(track, tensor.dtype)
        if placed is None:
            return None
        root, axes = track.root, rows_in(placed)
        if axes is not None and _count(placed, axes) == torch.Size(root.value.shape).numel():
            return Numbers(_key_of(root), axes)
        lies = tuple(
            axis for axis, size in enumerate(placed.shape) if size > 1 and placed.stride(axis)
        )
        steps = tuple((placed.shape[axis], placed.stride(axis)) for axis in lies)
        part = (_key_of(root), placed.storage_offset(), steps)
        return Numbers(self._found.setdefault(part, object()), lies)

    def note(self, call: Call) -> None:
        """An operator was called: what it made is what the same call made before."""
        op = call.op
        is_copy = RULES.get(op) in (copied, reshape) and not viewed_by(op)
        if is_copy and _is_whole(call.args["self"]):
            self._note_copy(call.args["self"], call.outputs[0])
            return
        seeded = torch.Tag.nondeterministic_seeded in op.tags
        if op.namespace != "aten" or seeded or writes(op) or viewed_by(op):
            return
        if not any(_is_whole(out) for out in call.outputs):
            return
        args = self._frozen(list(call.args.items()))
        if args is None:
            return
        for at, out in enumerate(call.outputs):
            track = self._memory.find(out)
            if track is not None and track.base is None and _is_whole(out):
                key = self._found.setdefault((op, at, args), object())
                track.numbers = (track.version, key)

    def _note_copy(self, tensor: Tensor, copy: Tensor) -> None:
        """The same numbers in the same order, in memory of their own."""
        found, track = self.of(tensor), self._memory.find(copy)
        several = tuple(axis for axis, size in enumerate(tensor.shape) if size > 1)
        if found is not None and track is not None and found.axes == several and _holds(copy):
            track.numbers = (track.version, found.key)

    def _frozen(self, value: Any) -> Hashable:
        """An argument that can be compared; None if it cannot."""
        if isinstance(value, Tensor):
            return self._frozen_tensor(value)
        if isinstance(value, list | tuple):
            parts = [self._frozen(item) for item in value]
            return None if None in parts else tuple(parts)
        return (type(value), str(value)) if isinstance(value, _PLAIN) else None

    def _frozen_tensor(self, tensor: Tensor) -> Hashable:
        shape, kind = tuple(tensor.shape), tensor.dtype
        if self._memory.find(tensor) is not None:
            found = self.of(tensor)
            return None if found is None else (found.key, found.axes, shape, kind)
        if tensor.is_meta or tensor.numel() > _COMPARED_AT_MOST or self._memory.is_exposed(tensor):
            return None
        return repr(tensor.tolist()), shape, kind


def _key_of(root: Track) -> Hashable:
    """Names what a tensor holds now."""
    if root.numbers is None or root.numbers[0] != root.version:
        root.numbers = (root.version, object())
    return root.numbers[1]


def _count(tensor: Tensor, axes: Sequence[int]) -> int:
    return torch.Size([tensor.shape[axis] for axis in axes]).numel()


def _holds(copy: Tensor) -> bool:
    """Whether a copy holds all whole numbers that may choose from an axis."""
    return copy.dtype in (torch.int32, torch.int64)


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())
