"""Which of a model's constants the analysis relied on, and what in them.

The analysis reads constants by value: where they are uniform they pin nothing, and an index table
says what goes where. What it finds in this way holds for states that have the same constants.
Tensors that are made of buffers remember which ones, so that what is read of them is known to be
read of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fxrebasin.passes.fields.fields import Labels, Value
from fxrebasin.passes.propagate.memory import address_of, view_key
from fxrebasin.passes.propagate.model_state import Held
from fxrebasin.passes.rules.registry import overloads
from fxrebasin.uniformity import has_bits, varying_axes_of

_VARYING = "_fxrebasin_varying"

_NOT_LOOKED_AT = object()
"""In place of the axes along which a buffer varies, until something asks for them."""


@dataclass(frozen=True)
class Origins:
    """What a constant was made of.

    Args:
        names: of the buffers.
        varying: the axes along which it varies because the buffers do, whatever their values; None
            if that cannot be told.
    """

    names: frozenset[str]
    varying: frozenset[int] | None


@dataclass
class Relied:
    """What is read of constants that were made of buffers.

    Attributes:
        by_value: by the name of a buffer that was relied on, whether its values were; otherwise
            only where it varies was.
        met: by the index of an operator, the names of the buffers that pin what meets them there.
    """

    by_value: dict[str, bool] = field(default_factory=dict)
    met: dict[int, frozenset[str]] = field(default_factory=dict)
    _names: dict[int, frozenset[str]] = field(default_factory=dict)
    _written: set[int] = field(default_factory=set)
    _kept: list[StorageWeakRef] = field(default_factory=list)

    def begin(self, item: Held, stand_in: Tensor) -> None:
        """Remember that a tensor has the values of a buffer.

        Args:
            item: the buffer.
            stand_in: a copy of it.
        """
        names = frozenset([item.name])
        self._remember(item.tensor, names)
        self._remember(stand_in, names)
        if has_bits(stand_in):
            setattr(stand_in, _VARYING, _NOT_LOOKED_AT)

    def hand_on(self, func: Any, operands: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Remember what the results of an operator on constants were made of.

        Args:
            func: the operator.
            operands: its tensors.
            results: the tensors that it returned.
        """
        if not self._names:
            return
        known = [(tensor, self._origins(tensor)) for tensor in operands]
        names = frozenset[str]().union(*(found.names for _, found in known if found is not None))
        for result in results if names else ():
            self._remember(result, names)
            setattr(result, _VARYING, _varying(func, known, result))

    def note_write(self, tensor: Tensor) -> None:
        """A constant was written to: where it varies is no longer what its buffers say."""
        self._written.add(address_of(tensor))

    def _remember(self, tensor: Tensor, names: frozenset[str]) -> None:
        address = address_of(tensor)
        if not address:
            return
        if address not in self._names:
            with torch._C.DisableTorchFunction():
                self._kept.append(StorageWeakRef(tensor.untyped_storage()))
        self._names[address] = self._names.get(address, frozenset()) | names

    def _origins(self, tensor: Tensor) -> Origins | None:
        """The buffers that a constant was made of; None if there are none."""
        address = address_of(tensor)
        names = self._names.get(address)
        if names is None:
            return None
        return Origins(names, _varies(tensor) if address not in self._written else None)

    def on_values(self, tensor: Tensor) -> None:
        """Record that the values of a constant were looked at."""
        origins = self._origins(tensor)
        if origins is not None:
            self._add(origins.names, True)

    def on_pattern(self, tensor: Tensor, value: Value, operator: int) -> None:
        """Record what a constant was found to be, unless that pins all of it.

        Args:
            tensor: a constant.
            value: what was found.
            operator: its index.
        """
        origins = self._origins(tensor)
        if origins is None:
            return
        if value.fields:
            self.met[operator] = self.met.get(operator, frozenset()) | origins.names
        pinned = frozenset(item.axes[0] for item in value.fields if _pins_an_axis(item))
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        if pinned >= {axis for axis, (size, step) in enumerate(steps) if size > 1 and step}:
            return
        foreseen = len(pinned) == len(value.fields) and origins.varying == pinned
        self._add(origins.names, not foreseen)

    def _add(self, names: Iterable[str], by_value: bool) -> None:
        for name in sorted(names):
            self.by_value[name] = self.by_value.get(name, False) or by_value


def _varies(tensor: Tensor) -> frozenset[int] | None:
    """The axes along which a constant varies because its buffers do, if that was noted."""
    found = getattr(tensor, _VARYING, None)
    if found is _NOT_LOOKED_AT:
        found = frozenset(varying_axes_of(tensor))
        setattr(tensor, _VARYING, found)
    return found


def _pins_an_axis(item: Any) -> bool:
    return isinstance(item, Labels) and item.rigid and item.injective and len(item.axes) == 1


def place_of(tensor: Tensor) -> object:
    """Equal for tensors that are the same view of the same memory.

    Args:
        tensor: one without memory is equal to itself only.
    """
    address = address_of(tensor)
    if not address:
        return id(tensor)
    return (address, *view_key(tensor))


def _varying(
    func: Any, operands: Sequence[tuple[Tensor, Origins | None]], result: Tensor
) -> frozenset[int] | None:
    """Where a result varies if its operands do, by the operator alone."""
    if any(origins is None and tensor.numel() > 1 for tensor, origins in operands):
        return None
    found: set[int] = set()
    for tensor, origins in operands:
        if origins is None:
            continue
        places = _places(func, tensor, result)
        if origins.varying is None or places is None:
            return None
        found |= {places[axis] for axis in origins.varying}
    return frozenset(found)


_BROADCASTS = frozenset(op for name in ("expand", "detach") for op in overloads(name))
_RESHAPES = frozenset(
    op for name in ("view", "_unsafe_view", "unsqueeze", "squeeze") for op in overloads(name)
)


def _places(func: Any, tensor: Tensor, result: Tensor) -> dict[int, int] | None:
    """Where the axes of an operand, those of size above 1, are in the result of an operator."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if torch.Tag.pointwise in func.tags or func in _BROADCASTS:
        return {axis: axis + result.ndim - tensor.ndim for axis in axes}
    after = [axis for axis, size in enumerate(result.shape) if size > 1]
    alike = [tensor.shape[axis] for axis in axes] == [result.shape[axis] for axis in after]
    if func in _RESHAPES and alike:
        return dict(zip(axes, after, strict=True))
    return None
