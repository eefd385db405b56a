"""The outputs of a model: every tensor that its caller can get at, by name.

Analysis, tracing, comparison and export all go by this definition. An output is

- a tensor that can be reached from what `forward` returned: in tuples, lists, mappings, sets, and
  through the attributes and slots of any other object (those of its instance, never properties);
- a tensor that was passed in and written to, or that was put into a container or an object that
  was passed in; its name starts with `inputs.`, then its position or keyword.

One thing that a model returns does not count: a cache of keys and values, by which the next call
goes on from this one (see `is_cache`). It is an output only if it is asked for by name.

What cannot be looked into (an iterator, a function or module that would compute with tensors later,
a numpy array, an object of an extension that may hold anything) is refused.
"""

from __future__ import annotations

import copy
import functools
import gc
import re
import sys
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxrebasin.errors import InputError
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.wording import listed

Wanted: TypeAlias = tuple[str, ...] | Callable[[Any], Any] | None
"""Which outputs count: those of these names or patterns, those in what a function makes of what
the model returned, or all but caches."""

Outputs: TypeAlias = Iterable[str] | Callable[[Any], Any] | None
"""The same, as public functions take it."""

REDUCED_KEY = "fxrebasin.reduced"
"""In the `meta` of a graph that returns what a function made of the outputs of its model."""

_PLAIN: frozenset[type] = frozenset(
    {
        *(NoneType, bool, int, float, complex, str, bytes, bytearray, range, type(...), object),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(torch.finfo, torch.iinfo, torch.Generator, type(NotImplemented)),
    }
)
_HARMLESS = (Enum, np.generic, np.dtype, ModuleType, torch.SymInt, torch.SymFloat, torch.SymBool)
_TENSORS = (torch.Tensor, fx.Proxy)
_FUNCTIONS = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    functools.partial,
    functools.partialmethod,
    type(functools.lru_cache(lambda: None)),
    type([].__len__),
)
_CONTAINERS = (Mapping, AbstractSet, list, tuple, deque, ValuesView, np.ndarray)
_OWN = ("__dict__", "__weakref__")
_CACHE_NAME = "past_key_values"
_SET_MEMBER = re.compile(r"\{\d+\}")
_LISTED = 20


class ReducingError(InputError):
    """The function that says which outputs count raises on what the model returned."""


@dataclass(frozen=True, eq=False)
class Output:
    """One tensor and where it was found; `cache` if it is part of a cache."""

    name: str
    tensor: Any  # a tensor, or what stands for one while torch.fx traces
    cache: bool = False


def counted(
    returned: Any, wanted: Wanted = None, given: Given | None = None, *, strict: bool = True
) -> dict[str, torch.Tensor]:
    """The outputs that count, by name, in the order in which they are found.

    Args:
        returned: what a model returned, after `reduced`.
        wanted: names or patterns; what a function chose has been chosen by `reduced`.
        given: the inputs of that call, made before it.
        strict: refuse names that fit no output.

    Raises:
        InputError: a name fits no output, or something returned cannot be looked into.

    Example:
        >>> list(counted({"logits": torch.ones(1), "states": (torch.ones(1), None)}))
        ['logits', 'states.0']
        >>> list(counted({"logits": torch.ones(1), "states": (torch.ones(1), None)}, ("lo*",)))
        ['logits']
    """
    walk = _Walk()
    walk.visit(returned, ())
    written = [] if given is None or callable(wanted) else given.written()
    found = _named_once([*walk.found, *written])
    if isinstance(wanted, tuple):
        if strict:
            _check_known(found, wanted)
        return {item.name: item.tensor for item in _chosen(found, wanted)}
    if walk.refused:
        place, why = walk.refused[0]
        raise InputError(
            f"the model's output {place} cannot be looked into: {why}. It may not "
            "change either: let forward return tensors, or say which outputs count, with outputs="
        )
    return {item.name: item.tensor for item in found if not item.cache}


def reduced(model: nn.Module, returned: Any, wanted: Wanted) -> Any:
    """What the function of the user makes of what a model returned; without one, the same.

    To be called where the model was called, for the function may compute.

    Args:
        model: that returned it; a graph that was traced with the function has done so itself.
        returned: what the model returned.
        wanted: which outputs count.

    Raises:
        ReducingError: the function raises; perhaps because it cannot take meta tensors.
    """
    if not callable(wanted) or getattr(model, "meta", {}).get(REDUCED_KEY):
        return returned
    made: list[Any] = []
    error = attempt(lambda: made.append(wanted(returned)))
    if error is not None:
        raise ReducingError(
            f"the function outputs= raised {first_lines(error)} on the {type(returned).__name__} "
            "that the model returned"
        ) from error
    return made[0]


def counts_when_put(value: Any, name: str, wanted: Wanted, *, cache: bool = False) -> bool:
    """Whether what was put into an input holds an output that counts.

    Args:
        value: what was put there.
        name: of its place, as outputs are called.
        wanted: which outputs count; a function sees what the model returned, and nothing else.
        cache: whether the place is in a cache.

    Example:
        >>> counts_when_put([torch.ones(2)], "inputs.1.states", ("inputs.1.states.0",))
        True
    """
    if callable(wanted):
        return False
    walk = _Walk(everything=True)
    walk.visit(value, (name,), cache)
    if wanted is None:
        return any(not item.cache for item in walk.found)
    return bool(_chosen(walk.found, wanted))


def _check_known(found: Sequence[Output], patterns: tuple[str, ...]) -> None:
    unfit = [pattern for pattern in patterns if not any(_fits(item, pattern) for item in found)]
    if unfit:
        raise InputError(
            f"outputs: the model has no output {', '.join(map(repr, unfit))}. "
            f"Its outputs are: {listed([item.name for item in found], _LISTED) or 'none'}."
        )


def _chosen(found: Sequence[Output], patterns: tuple[str, ...]) -> list[Output]:
    """The outputs that some pattern fits; members of a set, which has no order, all or none."""
    wanted = {
        _SET_MEMBER.sub("{}", item.name)
        for item in found
        if any(_fits(item, pattern) for pattern in patterns)
    }
    return [item for item in found if _SET_MEMBER.sub("{}", item.name) in wanted]


def _fits(item: Output, pattern: str) -> bool:
    return item.name == pattern or fnmatchcase(item.name, pattern)


def _named_once(found: Sequence[Output]) -> list[Output]:
    """The outputs with names that are all different."""
    used: set[str] = set()
    numbers: Counter[str] = Counter()
    result = []
    for item in found:
        name = item.name
        while name in used:
            numbers[item.name] += 1
            name = f"{item.name}_{numbers[item.name]}"
        used.add(name)
        result.append(Output(name, item.tensor, item.cache))
    return result


class Given:
    """The inputs of a call as they are before it, to see afterwards what was written to them.

    Args:
        args: positional inputs, the very objects that the model gets.
        kwargs: keyword inputs.
        values: also compare values, which sees writes past PyTorch; not for meta tensors.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], values: bool = False
    ) -> None:
        self._values = {str(index): value for index, value in enumerate(args)} | dict(kwargs)
        self._before = {
            id(item.tensor): (item.tensor, _version(item.tensor), _copied(item.tensor, values))
            for item in _tensors_in(self._values)
        }

    def each(self, do: Callable[[torch.Tensor], object]) -> None:
        """Do something with every tensor among the inputs."""
        for tensor, _, _ in self._before.values():
            do(tensor)

    def put(self) -> list[str]:
        """The names of the tensors that were put into containers and objects since."""
        return [item.name for item in self.written() if id(item.tensor) not in self._before]

    def written(self) -> list[Output]:
        """The tensors among the inputs that are new there or were written to since."""
        return [
            Output(f"inputs.{item.name}", item.tensor, item.cache)
            for item in _tensors_in(self._values)
            if self._changed(item.tensor)
        ]

    def _changed(self, tensor: torch.Tensor) -> bool:
        if id(tensor) not in self._before:
            return True
        _, version, copied = self._before[id(tensor)]
        if version != _version(tensor):
            return True
        return copied is not None and not _same_values(tensor, copied)


def remade(values: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    """A copy of inputs that has other tensors in the places of theirs.

    Containers and objects are copied as well, so that a model that fills them leaves the caller's
    alone. Tensors that are the same stay the same.

    Args:
        values: inputs; not changed.
        make: from a tensor to the one in its place.

    Example:
        >>> remade(([torch.ones(2)], "same"), torch.zeros_like)
        ([tensor([0., 0.])], 'same')
    """
    tensors = {id(item.tensor): item.tensor for item in _tensors_in(values)}
    made = {key: make(tensor) for key, tensor in tensors.items()}
    copies: list[Any] = []
    if attempt(lambda: copies.append(copy.deepcopy(values, dict(made)))) is None:
        return copies[0]
    return pytree.tree_map_only(torch.Tensor, lambda tensor: made[id(tensor)], values)


def for_graph(
    returned: Any, wanted: Wanted, *, objects: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """What a graph returns in the place of what its model returned, and notes on what it lacks.

    Only the outputs that count, in the same containers, with None in the places of the others. A
    graph returns no other objects than containers: their tensors come in a dict, by name.

    Args:
        returned: what the model returned, after `reduced`.
        wanted: which outputs count.
        objects: the tracer may know what to do with an object of which nothing is left out.
    """
    walk = _Walk()
    walk.visit(returned, ())
    found = _named_once(walk.found)
    chosen = [item for item in found if not item.cache]
    if isinstance(wanted, tuple):
        chosen = _chosen(found, wanted)
    leaves, structure = pytree.tree_flatten(returned, is_leaf=is_cache)
    owners = _owners(leaves, found)
    left_out = [item for item in found if item not in chosen]
    if not left_out and (objects or owners is not None):
        return returned, ()
    if owners is None or not set(map(id, chosen)) <= set(map(id, owners)):
        kinds = dict.fromkeys(type(leaf).__name__ for leaf in leaves if _counted_inside(leaf))
        note = f"the graph returns a dict of tensors, for it cannot return a {', '.join(kinds)}"
        return {item.name: item.tensor for item in chosen}, (note,)
    kept = [
        leaf if owner in chosen or (owner is None and not is_cache(leaf)) else None
        for leaf, owner in zip(leaves, owners, strict=True)
    ]
    return pytree.tree_unflatten(kept, structure), (f"the graph leaves out {_described(left_out)}",)


def _counted_inside(leaf: Any) -> bool:
    return not isinstance(leaf, _TENSORS) and not is_cache(leaf) and bool(_tensors_in(leaf))


def _described(outputs: Sequence[Output]) -> str:
    """Names of outputs; of caches, only that they are there."""
    caches = ["its cache of keys and values"] if any(item.cache for item in outputs) else []
    return listed([item.name for item in outputs if not item.cache] + caches, _LISTED)


def _owners(leaves: Sequence[Any], found: Sequence[Output]) -> list[Output | None] | None:
    """Which output each leaf of a tree is; None if there are outputs in other objects than trees.

    Caches may be such objects.
    """
    rest = deque(found)
    owners: list[Output | None] = []
    for leaf in leaves:
        if not isinstance(leaf, _TENSORS):
            owners.append(None)
            continue
        while rest and rest[0].cache and rest[0].tensor is not leaf:
            rest.popleft()
        if not rest or rest[0].tensor is not leaf:
            return None
        owners.append(rest.popleft())
    return owners if all(item.cache for item in rest) else None


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


@dataclass
class _Walk:
    """Goes through a value, and collects the tensors and what cannot be looked into.

    `everything` goes also into functions and modules. An object is visited once; a container, as
    often as it is found, for graphs return it as often.
    """

    everything: bool = False
    found: list[Output] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    _objects: dict[int, Any] = field(default_factory=dict)
    _above: set[int] = field(default_factory=set)

    def visit(self, value: Any, place: tuple[str, ...], cache: bool = False) -> None:
        """Collect what is in a value found at a place."""
        if isinstance(value, _TENSORS):
            self.found.append(Output(".".join(place) or "output", value, cache))
            return
        if type(value) in _PLAIN or isinstance(value, _HARMLESS) or id(value) in self._above:
            return
        why = None if self.everything else _refusal(value)
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
        for key, item in _attributes(value):
            if not (isinstance(item, _TENSORS) and id(item) in seen):
                self.visit(item, (*place, key), cache or is_cache(None, key))
            seen.add(id(item))


def _tensors_in(values: Any) -> list[Output]:
    """Every tensor in inputs of a model, whatever holds it."""
    walk = _Walk(everything=True)
    walk.visit(values, ())
    return walk.found


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
    plain = type(value) in (torch.Tensor, nn.Parameter) and not value.is_meta
    numbers = torch.view_as_real(value.detach()) if plain and value.is_complex() else value
    return str(value.dtype), tuple(value.shape), numbers.reshape(-1).tolist() if plain else []


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes and slots of an instance; of a class, and of its classes, the tensors."""
    if isinstance(value, _FUNCTIONS):
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


def _refusal(value: Any) -> str | None:
    """Why a value may hold more than can be seen of it; None if it does not."""
    kind = type(value).__name__
    if isinstance(value, Iterator | Awaitable):
        return f"a {kind} has nothing in it until it is run"
    if isinstance(value, np.ndarray) and value.size and value.dtype != object:
        return "the values of a numpy array have left PyTorch"
    if isinstance(value, (*_FUNCTIONS, nn.Module)):
        holds = _tensors_in(value)
        return f"a {kind} computes later, with {holds[0].name!r}" if holds else None
    if isinstance(value, (*_CONTAINERS, type, weakref.ReferenceType)):
        return None
    return _opaque(value)


def _opaque(value: Any) -> str | None:
    """Why an object may hold more than its attributes."""
    seen = {id(item) for _, item in _attributes(value)} | {id(getattr(value, "__dict__", None))}
    hidden = [
        item
        for item in gc.get_referents(value)
        if id(item) not in seen and not isinstance(item, type | ModuleType)
    ]
    kind = type(value)
    if any(_tensors_in(item) for item in hidden):
        return f"a {kind.__name__} holds tensors out of sight"
    pythonic = hasattr(value, "__dict__") or any("__slots__" in vars(k) for k in kind.__mro__)
    standard = kind.__module__.partition(".")[0] in {"builtins", *sys.stdlib_module_names}
    if pythonic or standard or gc.is_tracked(value):
        return None
    return f"a {kind.__module__}.{kind.__name__}, of an extension, may hold anything"


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)


def _copied(tensor: torch.Tensor, values: bool) -> torch.Tensor | None:
    return tensor.detach().clone() if values and not tensor.is_meta else None


def _same_values(tensor: torch.Tensor, copied: torch.Tensor) -> bool:
    if tensor.shape != copied.shape or tensor.dtype != copied.dtype:
        return False
    tensor = tensor.detach()
    return bool(((tensor == copied) | ((tensor != tensor) & (copied != copied))).all())
