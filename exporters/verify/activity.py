"""Which units a run shows: what a weight multiplies only zeros with may be anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fxrebasin.running.watching import OperatorMode
from fxrebasin.wording import listed

_aten = torch.ops.aten
_SHOWN = 5  # units of a parameter in a note, and parameters
_Place = tuple[int, tuple[int, ...], tuple[int, ...], int]
"""Storage, sizes, strides and offset of the first elements of what units are multiplied with."""


class Activity(OperatorMode):
    """Dispatch mode that notes which units were ever other than zero where they meet a parameter.

    Looks at products of matrices and at convolutions in which one operand is a parameter. A unit is
    a position along the axis of the parameter that is summed over.

    Args:
        parameters: by name.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> activity = Activity(dict(net.named_parameters()))
        >>> with torch.no_grad(), activity:
        ...     output = net(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
        >>> activity.silent()
        {'weight': (1, [1])}
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._stored: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in parameters.items():
            if tensor.layout == torch.strided and not tensor.is_meta:
                place = tensor.untyped_storage()._cdata
                self._stored.setdefault(place, []).append((name, tensor))
        self._active: dict[_Place, Tensor] = {}

    def silent(self) -> dict[str, tuple[int, list[int]]]:
        """By parameter, the axis and the units on it that were zero whenever they met it."""
        found: dict[str, tuple[int, list[int]]] = {}
        for (storage, _, strides, offset), active in self._active.items():
            for place in (~active).nonzero().tolist():
                first = offset + sum(at * step for at, step in zip(place, strides, strict=True))
                known = self._unit(storage, strides, first)
                if known is not None:
                    name, axis, unit = known
                    found.setdefault(name, (axis, []))[1].append(unit)
        return {name: (axis, sorted(set(units))) for name, (axis, units) in found.items()}

    def notes(self) -> list[str]:
        """What `silent` says, in words."""
        silent = self.silent()
        if not silent:
            return []
        count = sum(len(units) for _, units in silent.values())
        where = [
            f"{_numbers(units)} on axis {axis} of {name}" for name, (axis, units) in silent.items()
        ]
        what, it = ("1 unit was", "it is") if count == 1 else (f"{count} units were", "they are")
        return [
            f"{what} active on no row ({listed(where, _SHOWN)}), so that nothing is known about "
            f"the weights that {it} multiplied with"
        ]

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operator, and note what it multiplies with parameters."""
        result = func(*args, **kwargs)
        meeting = _MEETINGS.get(func)
        if meeting is not None and result.numel():
            for weight, sizes, strides, active in meeting(*args):
                known = weight.layout == torch.strided and weight.numel()
                if known and weight.untyped_storage()._cdata in self._stored:
                    self._note(weight, sizes, strides, active())
        return result

    def _note(
        self, weight: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], active: Tensor
    ) -> None:
        place = (weight.untyped_storage()._cdata, sizes, strides, int(weight.storage_offset()))
        seen = active.reshape(sizes).cpu()
        self._active[place] = seen | self._active[place] if place in self._active else seen

    def _unit(
        self, storage: int, strides: tuple[int, ...], first: int
    ) -> tuple[str, int, int] | None:
        """The parameter, its axis and the place there, of what begins somewhere in a storage."""
        for name, tensor in self._stored[storage]:
            at = first - tensor.storage_offset()
            if not 0 <= at < tensor.numel():
                continue
            for step in strides[::-1]:
                for axis in range(tensor.dim()):
                    if tensor.stride(axis) == step and tensor.shape[axis] > 1:
                        return name, axis, at // step % tensor.shape[axis]
        return None


_Meeting = tuple[Tensor, tuple[int, ...], tuple[int, ...], Callable[[], Tensor]]


def _product(left: Tensor, right: Tensor) -> Iterator[_Meeting]:
    """Either operand of `[..., n, k] @ [..., k, m]` as a weight, and the other as units."""
    yield _summed(right, -2, lambda: (left != 0).any(-2))
    yield _summed(left, -1, lambda: (right != 0).any(-1))


def _summed(weight: Tensor, axis: int, active: Callable[[], Tensor]) -> _Meeting:
    if weight.dim() == 2 or weight.stride(0) != 0:
        kept = (*range(weight.dim() - 2), axis)
        sizes, strides = (tuple(f(i) for i in kept) for f in (weight.size, weight.stride))
        return weight, sizes, strides, active
    # one matrix for the whole batch
    return weight, (weight.size(axis),), (weight.stride(axis),), lambda: active().any(0)


def _addition(bias: Tensor, left: Tensor, right: Tensor) -> Iterator[_Meeting]:
    return _product(left, right)


def _convolution(inputs: Tensor, weight: Tensor, *others: Any) -> Iterator[_Meeting]:
    """Channels of images; with groups, each meets the weights of its group."""
    transposed, groups = others[4], others[6]
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    per_group = inputs.shape[1] // groups
    across = weight.shape[0] // groups * weight.stride(0)
    within = weight.stride(0) if transposed else weight.stride(1)
    yield (
        weight,
        (groups, per_group),
        (across, within),
        lambda: (inputs != 0).any(axes) if axes else inputs != 0,
    )


_MEETINGS: Mapping[Any, Callable[..., Iterator[_Meeting]]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _addition,
    _aten.baddbmm.default: _addition,
    _aten.convolution.default: _convolution,
}


def _numbers(units: list[int]) -> str:
    return listed([str(unit) for unit in units], _SHOWN)
