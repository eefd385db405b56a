"""The modes of torch that a caller may be in, taken off for the time of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from fxrebasin.errors import InputError
from fxrebasin.running.modes import modes_off

_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def own_surroundings() -> Iterator[None]:
    """No inference mode, autocast, other device by default or dispatch mode; those of this thread.

    Raises:
        InputError: inside `torch.vmap` and other transforms of functions, where a model has no
            values of its own.

    Example:
        >>> with torch.inference_mode(), own_surroundings():
        ...     torch.ones(1).is_inference()
        False
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise InputError(
            "this is inside torch.vmap, torch.func.grad or another transform of functions, where "
            "tensors stand for several at once; call fxrebasin outside of it"
        )
    with ExitStack() as stack:
        stack.enter_context(modes_off())
        stack.enter_context(torch.inference_mode(False))
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def in_own_surroundings(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function independent of the modes that its caller is in.

    Args:
        call: the function.
    """

    @functools.wraps(call)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with own_surroundings():
            return call(*args, **kwargs)

    return called
