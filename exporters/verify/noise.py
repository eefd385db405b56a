"""How large rounding errors are at each place of an output.

Terms that cancel leave rounding errors as large as what is left of them. To tell these from another
function, the reference is run in float64 again with the result of every operator off by a few units
in the last place, which draws its rounding errors anew (Monte Carlo arithmetic, Parker 1997). That
is done only where there is a doubt, and no more often than it takes to end it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxrebasin.exporters.verify.float64 import widened
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.exporters.verify.runs import Subject, Tensors, in_float64, tensors_of
from fxrebasin.running.apart import is_inexact, parts
from fxrebasin.running.given import remade
from fxrebasin.running.modes import modes_off
from fxrebasin.running.operators import tensors_in, viewed_by, writes
from fxrebasin.running.watching import OperatorMode

_DRAWS = 3
_NUDGE = 2.0**-51  # two units in the last place
_ULP = 2.0**-52
_BLOCK = 1 << 16  # numbers that are off at a time: what a processor's cache holds


@dataclass
class _Measured:
    """What is known of the rounding errors on one set of inputs.

    Attributes:
        inputs: the set.
        wide: the outputs in float64.
        errors: the largest so far, place by place, of the parts of complex numbers.
        draws: how often they were drawn.
    """

    inputs: InputSet
    wide: Tensors
    errors: Tensors
    draws: int = 0


class Noise:
    """Rounding errors of a reference; measured when asked for, and once for all who ask.

    Args:
        subject: the reference.
        sets: of inputs on which it has been run.
        runs: what it returned there, in float64.
    """

    def __init__(
        self, subject: Subject, sets: Sequence[InputSet] = (), runs: Sequence[Tensors] = ()
    ) -> None:
        self._subject = subject
        self._known = list(zip(sets, runs, strict=True))
        self._measured: list[_Measured] = []

    def know(self, inputs: InputSet, run: Tensors) -> None:
        """Take in what the reference returned in float64, so that it need not be run for that.

        Args:
            inputs: the set.
            run: the outputs.
        """
        self._known.append((inputs, run))

    def growing(
        self, inputs: InputSet, name: str, native: Mapping[str, Tensor] | None = None
    ) -> Iterator[Tensor]:
        """The errors of an output, place by place, of the parts of complex ones.

        Each time that there is another they have been drawn once more, and none is smaller; the
        last one is what there is to know.

        Args:
            inputs: the set.
            name: of the output.
            native: what the reference returns in its own precision, if that is what is compared;
                its units in the last place count then.
        """
        measured = self._on(inputs)
        while True:
            if native is not None and name in native:
                yield _in_units_of(native[name], measured.wide[name], measured.errors[name])
            elif measured.draws:
                yield measured.errors[name]
            if measured.draws == _DRAWS:
                return
            self._draw(measured)

    def _on(self, inputs: InputSet) -> _Measured:
        for measured in self._measured:
            if measured.inputs is inputs:
                return measured
        known = [run for one, run in self._known if one is inputs]
        wide = known[0] if known else tensors_of(self._subject, inputs, self._run(inputs))
        zeros = {name: torch.zeros_like(_numbers(tensor)) for name, tensor in wide.items()}
        self._measured.append(_Measured(inputs, wide, zeros))
        return self._measured[-1]

    def _draw(self, measured: _Measured) -> None:
        seed = measured.draws
        other = self._run(_nudged(measured.inputs, seed), Nudging(seed))
        measured.draws += 1
        if isinstance(other, Exception):
            return
        for name, errors in measured.errors.items():
            if name in other:
                _raise_to(errors, measured.wide[name], other[name])

    def _run(self, inputs: InputSet, *watching: OperatorMode) -> Tensors | Exception:
        with in_float64(self._subject, little_memory=True) as run:
            return run(inputs, None, *watching)


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
        self._factors = _Factors(seed)

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns, nearly."""
        result = func(*args, **kwargs)
        if not (viewed_by(func) or writes(func)):
            with modes_off():
                for tensor in tensors_in(result):
                    if tensor.dtype in (torch.float64, torch.complex128):
                        self._factors.nudge(tensor)
        return result


class _Factors:
    """Numbers next to one, above and below at random.

    Signs are drawn once; each block of numbers begins at a place of its own among them.

    Args:
        seed: of the signs and the places.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (2 * _BLOCK,), generator=self._generator).double() * 2 - 1
        self._factors = 1 + _NUDGE * signs

    def nudge(self, tensor: Tensor) -> None:
        """Have the numbers of a tensor off that are not whole, in place.

        Args:
            tensor: `[...]` of float64 or complex128, of which the parts are numbers of their own.
        """
        if tensor.layout is not torch.strided:
            return
        numbers = parts(tensor.detach())
        flat = numbers.contiguous().view(-1)
        factors = self._factors.to(tensor.device)
        for block in flat.split(_BLOCK):
            start = int(torch.randint(0, _BLOCK, (), generator=self._generator))
            off = block * factors[start : start + len(block)]
            torch.where(block == block.floor(), block, off, out=block)
        if flat.data_ptr() != numbers.data_ptr():
            numbers.copy_(flat.view(numbers.shape))


def _nudged(inputs: InputSet, seed: int) -> InputSet:
    factors = _Factors(seed)

    def off(tensor: Tensor) -> Tensor:
        wide = widened(tensor)
        if wide.dtype in (torch.float64, torch.complex128):
            factors.nudge(wide)
        return wide

    args: tuple[Any, ...]
    args, kwargs = remade((inputs.args, dict(inputs.kwargs)), off)
    return replace(inputs, args=args, kwargs=kwargs)


def _in_units_of(native: Tensor, wide: Tensor, errors: Tensor) -> Tensor:
    """Errors that rounding to another precision makes, and those that it has made."""
    scaled = errors * (_ulp(native) / _ULP)
    _raise_to(scaled, wide, native)
    return scaled


def _raise_to(errors: Tensor, wide: Tensor, other: Tensor) -> None:
    """Take in how far another run is from the first."""
    if other.shape == wide.shape:
        apart = (_numbers(other) - _numbers(wide)).abs()
        torch.maximum(errors, apart.nan_to_num(0, 0, 0), out=errors)


def _numbers(tensor: Tensor) -> Tensor:
    return parts(tensor.detach().cpu()).double()


def _ulp(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if is_inexact(tensor) else _ULP
