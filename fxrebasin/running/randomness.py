"""Random numbers of a call's own, so that the generators of the process stay as they are.

Torch's default generator is one for all threads: who seeds it, or puts it back, does so for others.
"""

from __future__ import annotations

import pickle
import random
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from fxrebasin.running.operators import bind
from fxrebasin.running.watching import OperatorMode

_Call: TypeAlias = tuple[torch._ops.OpOverload, dict[str, Any]]
_DRAWN_ON = ("cpu", "cuda")


class OwnNumbers:
    """Generators for what operators draw, one for each device.

    Args:
        seed: of all of them.

    Attributes:
        drew_others: whether an operator drew that takes no generator.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self.drew_others = False
        self._seeded = False

    def seed(self, seed: int) -> None:
        """Begin anew.

        Args:
            seed: of all generators.
        """
        self._seed, self._seeded = seed, False
        self._generators.clear()

    def instead(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Call:
        """The operator to call, and its keyword arguments, so that it draws from here.

        Args:
            func: any operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func, kwargs
        if kwargs.get("generator") is not None or _given_by_position(func, args):
            return func, kwargs
        drawing = _with_generator(func)
        if drawing is None:
            if _may_draw(func, args, kwargs):
                self._seed_all()
            return func, kwargs
        return drawing, {**kwargs, "generator": self._generator(_device(args, kwargs))}

    def _seed_all(self) -> None:
        """Begin torch's own generators with the seed, for operators that take no others."""
        if not self._seeded:
            torch.manual_seed(self._seed)
        self._seeded = self.drew_others = True

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if device.type not in _DRAWN_ON:  # there are no numbers on the meta device
            return None
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


class DrawingFrom(OperatorMode):
    """Operators inside draw from generators of a call's own.

    Args:
        numbers: the generators.

    Example:
        >>> with DrawingFrom(OwnNumbers(0)):
        ...     first = torch.rand(3)
        >>> with DrawingFrom(OwnNumbers(0)):
        ...     torch.equal(torch.rand(3), first)
        True
    """

    def __init__(self, numbers: OwnNumbers) -> None:
        super().__init__()
        self._numbers = numbers

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns, drawn from the generators.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        func, kwargs = self._numbers.instead(func, args, kwargs)
        return func(*args, **kwargs)


def python_numbers() -> object:
    """The states of Python's and numpy's generators: equal while nobody draws from these."""
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


def seed_in_python(seed: int) -> None:
    """Begin the generators of Python and numpy anew, inside of what puts them back.

    Args:
        seed: of both.
    """
    random.seed(seed)
    np.random.seed(seed)


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where an operator draws: where it is told to, or where its tensors are."""
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device
    return torch.get_default_device()


def _given_by_position(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether a generator is among positional arguments, where some operators take it."""
    names = [argument.name for argument in func._schema.arguments]
    return "generator" in names and len(args) > names.index("generator")


def _may_draw(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws, as dropout and what holds it do when they are told to."""
    bound = bind(func, args, kwargs)
    if bound.get("train") is False or _device(args, kwargs).type not in _DRAWN_ON:
        return False
    return not any(bound.get(name) == 0 for name in ("p", "dropout", "dropout_p"))


@cache
def _with_generator(func: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The overload with the same arguments and a generator; None if there is none."""
    own = [argument.name for argument in func._schema.arguments]
    if "generator" in own:
        return func
    packet = func.overloadpacket
    for name in packet.overloads():
        other: torch._ops.OpOverload = getattr(packet, name)
        theirs = [argument.name for argument in other._schema.arguments]
        if "generator" in theirs and [a for a in theirs if a != "generator"] == own:
            return other
    return None
