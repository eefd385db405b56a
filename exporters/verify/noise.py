"""How large rounding errors are at each place of an output.

Terms that cancel leave rounding errors as large as what is left of them. To tell these from another
function, the reference is run in float64 again with the result of every operator off by a few units
in the last place, which draws its rounding errors anew (Monte Carlo arithmetic, Parker 1997). That
is done only where there is a doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxrebasin.exporters.verify.float64 import widened
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.exporters.verify.runs import Subject, Tensors, in_float64, tensors_of
from fxrebasin.running.apart import parts
from fxrebasin.running.given import remade
from fxrebasin.running.modes import modes_off
from fxrebasin.running.operators import tensors_in, viewed_by, writes
from fxrebasin.running.watching import OperatorMode

_DRAWS = 3
_NUDGE = 2.0**-51  # two units in the last place
_ULP = 2.0**-52


class Noise:
    """Rounding errors of a reference, by the number of a set of inputs; measured when asked for.

    Args:
        subject: the reference.
        sets: of inputs.
        natives: what it returns in its own precision, if that is what is compared; its units in the
            last place count then.
    """

    def __init__(
        self,
        subject: Subject,
        sets: Sequence[InputSet],
        natives: Sequence[Tensors] | None = None,
    ) -> None:
        self._subject, self._sets, self._natives = subject, sets, natives
        self._found: dict[int, Tensors] = {}

    def of(self, number: int, name: str) -> Tensor:
        """The errors of an output, place by place, of the parts of complex ones.

        Args:
            number: of the set.
            name: of the output.
        """
        if number not in self._found:
            self._found[number] = self._measured(number)
        return self._found[number][name]

    def _measured(self, number: int) -> Tensors:
        one = self._sets[number]
        with in_float64(self._subject, little_memory=True) as run:
            wide = tensors_of(self._subject, one, run(one))
            others = [run(_nudged(one, draw), None, Nudging(draw)) for draw in range(_DRAWS)]
        found = {name: torch.zeros_like(_numbers(tensor)) for name, tensor in wide.items()}
        for other in others:
            if not isinstance(other, Exception):
                _raise_to(found, wide, other)
        if self._natives is not None:
            native = self._natives[number]
            for name in found.keys() & native.keys():
                found[name] *= _ulp(native[name]) / _ULP
            _raise_to(found, wide, native)
        return found


class Nudging(OperatorMode):
    """Operators whose results are off by a few units in the last place.

    Whole numbers stay: flags, counts, masks and what is looked up by them are exact. So does what
    is a view, and what is written to.

    Args:
        seed: of the signs.

    Example:
        >>> with Nudging(0):
        ...     third, one = torch.ones(1).double() / 3, torch.ones(1).double() / 1
        >>> float(third) == 1 / 3, float(one)
        (False, 1.0)
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns, nearly."""
        result = func(*args, **kwargs)
        if not (viewed_by(func) or writes(func)):
            with modes_off():
                for tensor in tensors_in(result):
                    if tensor.dtype in (torch.float64, torch.complex128):
                        tensor.copy_(_off(tensor, self._generator))
        return result


def _nudged(inputs: InputSet, seed: int) -> InputSet:
    generator = torch.Generator().manual_seed(seed)
    args: tuple[Any, ...]
    args, kwargs = remade(
        (inputs.args, dict(inputs.kwargs)), lambda tensor: _off(widened(tensor), generator)
    )
    return replace(inputs, args=args, kwargs=kwargs)


def _off(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if tensor.layout is not torch.strided:
        return tensor
    signs = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
    whole = parts(tensor).frac() == 0
    if tensor.is_complex():
        whole = whole.all(-1)
    return tensor.where(whole, tensor * (1 + _NUDGE * signs).to(tensor.device))


def _raise_to(found: Tensors, wide: Tensors, other: Tensors) -> None:
    """Take in how far another run is from the first."""
    for name, noise in found.items():
        if name in other and other[name].shape == wide[name].shape:
            apart = (_numbers(other[name]) - _numbers(wide[name])).abs()
            torch.maximum(noise, apart.nan_to_num(0, 0, 0), out=noise)


def _numbers(tensor: Tensor) -> Tensor:
    return parts(tensor.detach().cpu()).double()


def _ulp(tensor: Tensor) -> float:
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return torch.finfo(tensor.dtype).eps if inexact else _ULP
