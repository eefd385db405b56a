"""Which of a model's parameters a run reads, and whether it looks at what it computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fxrebasin.running.operators import LOOKING, tensors_in, viewed_by
from fxrebasin.running.watching import OperatorMode

_COMPUTED = "_fxrebasin_computed"


class StateReads(OperatorMode):
    """Dispatch mode that notes which elements of some tensors are operands of an operator.

    A view reads nothing; what is done with it does, and reads the elements that it shows, unless
    that has no result (an expert on no rows). Where rows of a table are looked up, the table counts
    as read, and `unlooked` says which of its rows were not: other inputs will always find more.

    Args:
        tensors: by name, all strided.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> reads = StateReads(dict(net.named_parameters()))
        >>> with torch.no_grad(), reads:
        ...     output = net[0](torch.ones(1, 2))
        >>> reads.unread()
        {'1.weight': 4, '1.bias': 2}
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._tensors = {name: tensor for name, tensor in tensors.items() if _is_plain(tensor)}
        self._storages = {t.untyped_storage()._cdata for t in self._tensors.values()}
        self._seen: dict[int, set[tuple[Any, ...]]] = {}
        self._rows: dict[tuple[Any, ...], torch.Tensor] = {}  # of tables: those that were looked up
        self._whole: set[tuple[Any, ...]] = set()  # what was read in other ways, too
        self.looked = False
        """Whether the values of what was computed from these tensors or from real inputs were
        asked for: the run may take another path for other inputs."""

    def count_as_computed(self, value: Any) -> Any:
        """Count a floating-point input as something computed; other values are left alone."""
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            setattr(value, _COMPUTED, True)
        return value

    def unread(self) -> dict[str, int]:
        """How many elements of each tensor were not read; only tensors with some."""
        counts = {name: self._unread(tensor) for name, tensor in self._tensors.items()}
        return {name: count for name, count in counts.items() if count}

    def unlooked(self) -> dict[str, int]:
        """How many rows of each table, of which rows were looked up only, were not among these."""
        found = {}
        for name, tensor in self._tensors.items():
            rows = None if (place := _place(tensor)) in self._whole else self._rows.get(place)
            if rows is not None and not rows.all():
                found[name] = int((~rows).sum())
        return found

    def untouched(self) -> list[str]:
        """Names of the tensors of which no element was read."""
        unread = self.unread()
        return [n for n, tensor in self._tensors.items() if unread.get(n) == tensor.numel()]

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator, and note what it reads."""
        operands = tensors_in((list(args), kwargs))
        own = [operand for operand in operands if self._is_own(operand)]
        computed = bool(own) or any(hasattr(operand, _COMPUTED) for operand in operands)
        self.looked |= computed and func in LOOKING
        result = func(*args, **kwargs)
        results = tensors_in([result])
        if computed:
            for tensor in results:
                setattr(tensor, _COMPUTED, True)
        if not viewed_by(func) and (not results or any(tensor.numel() for tensor in results)):
            for operand in own:
                seen = self._seen.setdefault(operand.untyped_storage()._cdata, set())
                seen.add(_elements(operand))
            if own and func in _LOOKED_UP:
                self._look_up(own[0], args[1])
            else:
                self._whole.update(map(_place, own))
        return result

    def _look_up(self, table: torch.Tensor, rows: torch.Tensor) -> None:
        known = self._rows.setdefault(_place(table), torch.zeros(len(table), dtype=torch.bool))
        known[rows.reshape(-1).cpu().long()] = True

    def _is_own(self, tensor: torch.Tensor) -> bool:
        return _is_plain(tensor) and tensor.untyped_storage()._cdata in self._storages

    def _unread(self, tensor: torch.Tensor) -> int:
        places = self._seen.get(tensor.untyped_storage()._cdata)
        if not places:
            return tensor.numel()
        own = _elements(tensor)
        if own in places:
            return 0
        marks = torch.zeros(max(map(_end, (own, *places))), dtype=torch.bool)
        for offset, shape, strides in places:
            marks.as_strided(shape, strides, offset).fill_(True)
        return int((~marks.as_strided(tensor.shape, tensor.stride(), own[0])).sum())


def forget_computed(tensors: Iterable[torch.Tensor]) -> None:
    """Take away the marks of a run, from tensors that were there before it."""
    for tensor in tensors:
        vars(tensor).pop(_COMPUTED, None)


def _elements(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Which elements of its storage a tensor shows: those that its transpose shows, too."""
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    moving = sorted((step, size) for step, size in axes if size != 1)
    return tensor.storage_offset(), tuple(n for _, n in moving), tuple(n for n, _ in moving)


def _end(place: tuple[Any, ...]) -> int:
    """The first element of a storage that is behind all that a tensor shows."""
    offset, shape, strides = place
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return int(offset + last + 1) if all(shape) else 0


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.untyped_storage()._cdata, *_elements(tensor)


_LOOKED_UP = frozenset({torch.ops.aten.embedding.default, torch.ops.aten._embedding_bag.default})
"""Operators that read rows of their first argument, which the second one names."""


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta
