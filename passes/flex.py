"""`flex_attention`: attention with a function of the scores that the user wrote.

By itself it compiles that function, which torch does not do under a mode that watches operators.
Here it runs as the operators that it stands for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CALLED = "torch.nn.attention.flex_attention"
_OPERATOR = "torch._higher_order_ops.flex_attention"
_WITHOUT_COMPILING = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextmanager
def flex_attention_written_out(mode: type) -> Iterator[None]:
    """Within, a mode of this type sees the operators of `flex_attention`, if the model has it."""
    called, module = sys.modules.get(_CALLED), sys.modules.get(_OPERATOR)
    if called is None or module is None or not hasattr(called, _WITHOUT_COMPILING):
        yield
        return
    operator = module.flex_attention
    if mode not in operator.python_key_table:
        operator.py_impl(mode)(_written_out)
    before = getattr(called, _WITHOUT_COMPILING)
    setattr(called, _WITHOUT_COMPILING, True)
    try:
        yield
    finally:
        setattr(called, _WITHOUT_COMPILING, before)


def _written_out(mode: Any, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return sys.modules[_OPERATOR].math_attention(*args, **kwargs)
