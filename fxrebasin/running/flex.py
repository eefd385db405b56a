"""`flex_attention`: attention with a function of the scores that the user wrote.

By itself it compiles that function, which torch does not do under a mode that watches operators.
Under the modes of this package it runs as the operators that it stands for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from fxrebasin.running.switches import shared

_CALLED = "torch.nn.attention.flex_attention"
_OPERATOR = "torch._higher_order_ops.flex_attention"
_WITHOUT_COMPILING = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"

_Mode = TypeVar("_Mode", bound=type[TorchDispatchMode])
_modes: list[type[TorchDispatchMode]] = []


def sees_flex_attention(mode: _Mode) -> _Mode:
    """Make a class of modes see the operators that `flex_attention` stands for.

    Args:
        mode: the class, returned as it is.
    """
    _modes.append(mode)
    return mode


@contextmanager
def flex_attention_written_out() -> Iterator[None]:
    """Inside, `flex_attention` compiles nothing, should the model use it."""
    called, module = sys.modules.get(_CALLED), sys.modules.get(_OPERATOR)
    if called is None or module is None or not hasattr(called, _WITHOUT_COMPILING):
        yield
        return
    operator = module.flex_attention
    for mode in _modes:
        if mode not in operator.python_key_table:
            operator.py_impl(mode)(_written_out)
    with _without_compiling():
        yield


@contextmanager
def _not_compiled() -> Iterator[None]:
    called = sys.modules[_CALLED]
    before = getattr(called, _WITHOUT_COMPILING)
    setattr(called, _WITHOUT_COMPILING, True)
    try:
        yield
    finally:
        setattr(called, _WITHOUT_COMPILING, before)


_without_compiling = shared(_not_compiled)


def _written_out(mode: TorchDispatchMode, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return sys.modules[_OPERATOR].math_attention(*args, **kwargs)
