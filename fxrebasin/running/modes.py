"""Leave dispatch modes for a while: those of this thread, and of no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _pop_mode,
    _push_mode,
)

from fxrebasin.running.switches import TRACING


def modes_off() -> AbstractContextManager[object]:
    """No dispatch mode of this thread is on inside.

    Torch keeps the modes of tracing before dispatch on one stack for all threads. Only the thread
    that makes a graph may take them off it: for any other they are somebody else's.

    Example:
        >>> import torch
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode(), modes_off():
        ...     type(torch.empty(()))
        <class 'torch.Tensor'>
    """
    return _disable_current_modes() if TRACING.held else _own_modes_off()


@contextmanager
def _own_modes_off() -> Iterator[None]:
    modes = [_pop_mode() for _ in range(_len_torch_dispatch_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
