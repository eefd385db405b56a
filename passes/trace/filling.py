"""What a call puts into the containers and objects that are passed in, as nodes of its graph."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxrebasin.running.contents import is_cache, own_attributes
from fxrebasin.running.outputs import Wanted, counts_when_put

Read: TypeAlias = Callable[[], Any]
"""Makes the node that gives a graph access to a value, when it is needed."""


class Filling:
    """The containers and objects among the inputs of a call, as they are before it.

    A tracer records what is done to tensors. What a model does to a dict that it was given happens
    while it is traced, to the stand-in of that dict, and not when the graph is run. So what is in
    the stand-ins is looked at before and after, and at its end the graph turns one into the other.
    Only what holds an output that counts is put.

    Args:
        tracer: makes the nodes.
        inputs: the placeholder and the stand-in of every input, by its name among outputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
    """

    def __init__(
        self, tracer: fx.Tracer, inputs: Mapping[str, tuple[Any, Any]], wanted: Wanted
    ) -> None:
        self._tracer, self._wanted = tracer, wanted
        known: set[int] = set()
        self._inputs = [
            (f"inputs.{name}", placeholder, _seen(stand_in, known))
            for name, (placeholder, stand_in) in inputs.items()
        ]

    def emit(self) -> None:
        """Make the nodes, after the call."""
        for name, placeholder, before in self._inputs:
            self._visit(_Spot(name, partial(_same, placeholder)), before)

    def _visit(self, place: _Spot, before: _Before) -> None:
        value = before.value
        place = place.of(value)
        now = dict(_entries(value))
        for key, entry in before.entries.items():
            if key in now and now[key] is entry.value:
                self._visit(place.at(key, attribute=before.attributes), entry)
        if isinstance(value, list | deque):
            self._refill(place, before)
        elif isinstance(value, MutableSet):
            known = {id(entry.value) for entry in before.entries.values()}
            new = [(key, item) for key, item in now.items() if id(item) not in known]
            for _, item in self._counted(place, new):
                self._make("call_method", "add", place.read(), item)
        elif before.attributes or isinstance(value, MutableMapping):
            store = setattr if before.attributes else operator.setitem
            for key, item in self._counted(place, before.changed(now)):
                self._make("call_function", store, place.read(), key, item)

    def _refill(self, place: _Spot, before: _Before) -> None:
        """Empty a list and put in what it holds now: what it held before, and what is new."""
        value = before.value
        changed = before.changed(dict(enumerate(value)))
        if not any(True for _ in self._counted(place, changed)):
            return
        old = {id(entry.value): key for key, entry in before.entries.items()}
        target = place.read()
        items = [target[old[id(item)]] if id(item) in old else item for item in value]
        self._make("call_method", "clear", target)
        self._make("call_method", "extend", target, items)

    def _counted(self, place: _Spot, entries: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for key, item in entries:
            below = place.at(key)
            if counts_when_put(item, below.name, self._wanted, cache=below.cache):
                yield key, item

    def _make(self, kind: str, target: Any, *args: Any) -> None:
        self._tracer.create_proxy(kind, target, args, {})


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class _Spot:
    """Where a value is: its name among outputs, for a graph, and whether it is in a cache."""

    name: str
    read: Read
    cache: bool = False

    def of(self, value: Any) -> _Spot:
        """The same, once it is known what is there."""
        return _Spot(self.name, self.read, self.cache or is_cache(value))

    def at(self, key: Any, *, attribute: bool = False) -> _Spot:
        """Of an entry."""

        def read() -> Any:
            return getattr(self.read(), key) if attribute else self.read()[key]

        return _Spot(f"{self.name}.{key}", read, self.cache or is_cache(None, key))


@dataclass(frozen=True)
class _Before:
    """What was in a value: by key, index or name of an attribute."""

    value: Any
    entries: dict[Any, _Before] = field(default_factory=dict)
    attributes: bool = False

    def changed(self, now: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        """What is in it now that was not there."""
        known = self.entries
        return [
            (key, item)
            for key, item in now.items()
            if key not in known or known[key].value is not item
        ]


def _seen(value: Any, known: set[int]) -> _Before:
    """What is in a value and in what it holds, each at the first place where it is found."""
    if id(value) in known:
        return _Before(value)
    known.add(id(value))
    entries = {key: _seen(item, known) for key, item in _entries(value)}
    return _Before(value, entries, not isinstance(value, _CONTAINERS))


_CONTAINERS = (Mapping, list, tuple, deque, MutableSet)


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, torch.Tensor | fx.Proxy | nn.Module | type):
        return iter(())
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, list | tuple | deque | MutableSet):
        return iter(enumerate(value))
    return own_attributes(value)
