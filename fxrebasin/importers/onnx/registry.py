"""The table of ONNX operators: domain and name -> a function of torch tensors.

A function takes the node's inputs in their order, None for those left out, and its attributes by
name; it returns what the node returns, a tuple if that is several. An attribute that it does not
name is refused, so that nothing which changes the result is passed over in silence.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, TypeVar

import torch

from fxrebasin.errors import InputError

Function: TypeAlias = Callable[..., Any]
_F = TypeVar("_F", bound=Function)
_ANY = "**"

STANDARD = ""
MICROSOFT = "com.microsoft"


class UnsupportedError(InputError):
    """An operator, or a form of it, that this importer does not compute."""


@dataclass(frozen=True)
class Site:
    """What a function may ask about the node that it computes.

    Args:
        opset: version of the node's domain that the file imports.
        outputs: how many outputs the node names, those with an empty name at the end left out.
    """

    opset: int
    outputs: int


@dataclass(frozen=True)
class Operator:
    """One entry of the table.

    Args:
        function: computes the outputs.
        asks: whether it takes the `Site` of the node as `site=`.
        module: where it is registered.
        reads: which inputs, by position, are read as numbers: sizes, places, bounds.
    """

    function: Function
    asks: bool
    module: str
    reads: tuple[int, ...] = ()

    def names(self, attributes: Iterable[str]) -> bool:
        """Whether the function takes attributes of these names."""
        taken = _parameters(self.function)
        return _ANY in taken or taken.issuperset(attributes)


OPERATORS: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str, domain: str = STANDARD, reads: tuple[int, ...] = ()
) -> Callable[[_F], _F]:
    """Register a function for operators.

    Args:
        names: of operators that the function computes.
        domain: that they belong to.
        reads: which inputs, by position, are read as numbers: sizes, places, bounds. What they
            hold has to be known before any weight moves.

    Example:
        >>> from fxrebasin.importers.onnx.operators import OPERATORS
        >>> OPERATORS["", "Relu"].function(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    module = _caller()

    def register(function: _F) -> _F:
        for name in names:
            OPERATORS[domain, name] = Operator(function, _asks(function), module, reads)
        return function

    return register


def operators(functions: Mapping[str, Function], domain: str = STANDARD) -> None:
    """Register many that need one line each.

    Args:
        functions: by operator name.
        domain: that they belong to.
    """
    module = _caller()
    for name, function in functions.items():
        OPERATORS[domain, name] = Operator(function, _asks(function), module)


def _caller() -> str:
    """The module that registers something."""
    # inspect.stack reads the source of every frame: a minute for all operators.
    return str(sys._getframe(2).f_globals["__name__"])


@cache
def _parameters(function: Function) -> frozenset[str]:
    """Names of what a function takes; `_ANY` is among them if it hands on what it is given."""
    try:
        found = inspect.signature(function).parameters.values()
        kinds = {_ANY for item in found if item.kind is item.VAR_KEYWORD}
        return frozenset({item.name for item in found} | kinds)
    except ValueError:  # functions of torch that are written in C++, which take no attributes
        return frozenset()


def _asks(function: Function) -> bool:
    return "site" in _parameters(function)


def whole(tensor: torch.Tensor) -> int:
    """The number that a tensor of one element holds."""
    return int(tensor.reshape(()).item())


def number(value: torch.Tensor | float) -> int | float | bool:
    """The number that a tensor of one element holds, or the number itself."""
    if isinstance(value, torch.Tensor):
        found: int | float | bool = value.reshape(()).item()
        return found
    return value


def numbers(values: torch.Tensor | list[int] | None) -> list[int]:
    """The whole numbers of an attribute, or of an input that newer opsets have in its place.

    They are read one by one, as operators that an analysis sees.
    """
    if isinstance(values, torch.Tensor):
        return [int(item.item()) for item in values.reshape(-1)]
    return list(values or ())


def fractions(values: torch.Tensor | list[float] | None) -> list[float]:
    """The same of numbers with a fraction."""
    if isinstance(values, torch.Tensor):
        return [float(item.item()) for item in values.reshape(-1)]
    return list(values or ())
