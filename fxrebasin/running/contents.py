"""What is in a value: every tensor that can be reached from it, whatever holds it."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxrebasin.running.numberless import has_no_data

_PLAIN: frozenset[type] = frozenset(
    {
        *(NoneType, bool, int, float, complex, str, bytes, bytearray, range, type(...), object),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(torch.finfo, torch.iinfo, torch.Generator, type(NotImplemented)),
    }
)
_HARMLESS = (Enum, np.generic, np.dtype, ModuleType, torch.SymInt, torch.SymFloat, torch.SymBool)
TENSORS = (torch.Tensor, fx.Proxy)
FUNCTIONS = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    functools.partial,
    functools.partialmethod,
    type(functools.lru_cache(lambda: None)),
    type([].__len__),
)
_OWN = ("__dict__", "__weakref__")
_CACHE_NAME = "past_key_values"


@dataclass(frozen=True, eq=False)
class Output:
    """One tensor and where it was found; `cache` if it is part of a cache."""

    name: str
    tensor: Any  # a tensor, or what stands for one while torch.fx traces
    cache: bool = False


@dataclass
class Walk:
    """Goes through a value, and collects the tensors and what cannot be looked into.

    An object is visited once; a container, as often as it is found, for graphs return it as often.

    Args:
        refuse: says why a value may hold more than can be seen of it, or None if it does not; by
            default anything is looked into, functions and modules included.
    """

    refuse: Callable[[Any], str | None] | None = None
    found: list[Output] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    _objects: dict[int, Any] = field(default_factory=dict)
    _above: set[int] = field(default_factory=set)

    def visit(self, value: Any, place: tuple[str, ...], cache: bool = False) -> None:
        """Collect what is in a value found at a place."""
        if isinstance(value, TENSORS):
            self.found.append(Output(".".join(place) or "output", value, cache))
            return
        if type(value) in _PLAIN or isinstance(value, _HARMLESS) or id(value) in self._above:
            return
        why = None if self.refuse is None else self.refuse(value)
        if why is not None:
            self.refused.append((repr(".".join(place) or "output"), why))
            return
        self._above.add(id(value))
        cache = cache or is_cache(value)
        contents = _contents(value)
        first = len(self.found)
        for key, item in contents or []:
            self.visit(item, (*place, key), cache or is_cache(None, key))
        known = {id(item.tensor) for item in self.found[first:]}
        first = len(self.found)
        if contents is not None or id(value) not in self._objects:
            self._objects[id(value)] = value  # kept alive, so that its id stays its own
            self._visit_attributes(value, place, cache)
        new = [item for item in self.found[first:] if id(item.tensor) not in known]
        self.found[first:] = new  # a mapping may have its items as attributes, too
        self._above.discard(id(value))

    def _visit_attributes(self, value: Any, place: tuple[str, ...], cache: bool) -> None:
        seen: set[int] = set()  # a tensor that has two names in one object is one output
        for key, item in attributes(value):
            if not (isinstance(item, TENSORS) and id(item) in seen):
                self.visit(item, (*place, key), cache or is_cache(None, key))
            seen.add(id(item))


def tensors_reached(values: Any) -> list[Output]:
    """Every tensor in inputs of a model, whatever holds it."""
    walk = Walk()
    walk.visit(values, ())
    return walk.found


def is_cache(value: Any, key: Any = None) -> bool:
    """Whether a value is a cache of keys and values.

    That is: an object of a class of transformers that is called a cache. What a mapping or an
    object has under the name `past_key_values`, in whatever form, is one, too.

    Args:
        value: any object.
        key: under which a mapping or an object has it.
    """
    return key == _CACHE_NAME or any(
        kind.__module__.partition(".")[0] == "transformers" and kind.__name__.endswith("Cache")
        for kind in type(value).__mro__
    )


def _contents(value: Any) -> list[tuple[str, Any]] | None:
    """The items of a container; None if the value is none."""
    if isinstance(value, Mapping):
        keys = [(f"key {i}", key) for i, key in enumerate(value) if type(key) not in _PLAIN]
        return [*((str(key), item) for key, item in value.items()), *keys]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple | deque | ValuesView):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        return [(f"{{{index}}}", item) for index, item in enumerate(sorted(value, key=_order))]
    if isinstance(value, np.ndarray):
        items = value.reshape(-1).tolist() if value.dtype == object else []
        return [(str(index), item) for index, item in enumerate(items)]
    return None


def _order(value: Any) -> tuple[str, tuple[int, ...], list[Any]]:
    """By what members of a set are put in order: kind, shape, and values where there are any."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, (), []
    plain = type(value) in (torch.Tensor, nn.Parameter) and not has_no_data(value)
    numbers = torch.view_as_real(value.detach()) if plain and value.is_complex() else value
    return str(value.dtype), tuple(value.shape), numbers.reshape(-1).tolist() if plain else []


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes and slots of an instance; of a class, and of its classes, the tensors."""
    if isinstance(value, FUNCTIONS):
        yield from _held_by_function(value)
        return
    if isinstance(value, weakref.ReferenceType):
        yield "referent", value()
        return
    if not isinstance(value, type):
        yield from own_attributes(value)
    for kind in value.__mro__ if isinstance(value, type) else type(value).__mro__:
        for name, item in vars(kind).items():
            if isinstance(item, torch.Tensor):
                yield name, item


def own_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes and slots of an instance, without what its class has."""
    own = getattr(value, "__dict__", None)
    yield from own.items() if isinstance(own, Mapping) else ()
    for kind in type(value).__mro__:
        for name, item in vars(kind).items():
            if isinstance(item, MemberDescriptorType) and name not in _OWN:
                yield from _slot(value, name, item)


def _slot(value: Any, name: str, descriptor: MemberDescriptorType) -> Iterator[tuple[str, Any]]:
    try:
        yield name, descriptor.__get__(value, type(value))
    except (AttributeError, TypeError):  # nothing was assigned to it; the value is a class
        return


def _held_by_function(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function computes with beside its arguments."""
    for name in ("__self__", "__func__", "__wrapped__", "func", "args", "keywords"):
        yield name, getattr(value, name, None)
    yield "__defaults__", getattr(value, "__defaults__", None)
    yield "__kwdefaults__", getattr(value, "__kwdefaults__", None)
    for name, cell in zip(
        getattr(getattr(value, "__code__", None), "co_freevars", ()),
        getattr(value, "__closure__", None) or (),
        strict=False,
    ):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    yield from vars(value).items() if hasattr(value, "__dict__") else ()
