"""Memory that was freed, for other processes and other libraries of this one."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back_memory() -> None:
    """Let the C library hand freed memory to the operating system.

    glibc keeps what was freed between blocks that are in use, for its own next blocks: after a run
    with float64 weights that is half of them. Other C libraries do not have the call, nor need it.

    Example:
        >>> give_back_memory()
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no handle of the whole process
        return None
