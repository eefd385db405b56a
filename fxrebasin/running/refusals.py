"""Values that may hold more tensors than can be seen."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from fxrebasin.running.contents import FUNCTIONS, attributes, tensors_reached

_CONTAINERS = (Mapping, AbstractSet, list, tuple, deque, ValuesView, np.ndarray)


def refusal(value: Any) -> str | None:
    """Why a value may hold more than can be seen of it; None if it does not."""
    kind = type(value).__name__
    if isinstance(value, Iterator | Awaitable):
        return f"a {kind} has nothing in it until it is run"
    if isinstance(value, np.ndarray) and value.size and value.dtype != object:
        return "the values of a numpy array have left PyTorch"
    if isinstance(value, (*FUNCTIONS, nn.Module)):
        holds = tensors_reached(value)
        return f"a {kind} computes later, with {holds[0].name!r}" if holds else None
    if isinstance(value, (*_CONTAINERS, type, weakref.ReferenceType)):
        return None
    return _opaque(value)


def _opaque(value: Any) -> str | None:
    """Why an object may hold more than its attributes."""
    seen = {id(item) for _, item in attributes(value)} | {id(getattr(value, "__dict__", None))}
    hidden = [
        item
        for item in gc.get_referents(value)
        if id(item) not in seen and not isinstance(item, type | ModuleType)
    ]
    kind = type(value)
    if any(tensors_reached(item) for item in hidden):
        return f"a {kind.__name__} holds tensors out of sight"
    pythonic = hasattr(value, "__dict__") or any("__slots__" in vars(k) for k in kind.__mro__)
    standard = kind.__module__.partition(".")[0] in {"builtins", *sys.stdlib_module_names}
    if pythonic or standard or gc.is_tracked(value):
        return None
    return f"a {kind.__module__}.{kind.__name__}, of an extension, may hold anything"
