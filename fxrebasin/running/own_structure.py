"""A copy of what a model is made of, for a call to work on; its tensors stay where they are."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, deque
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from fxrebasin.running.messages import attempt
from fxrebasin.running.preserve import tensors_of
from fxrebasin.running.switches import no_warnings

_NOT_COPYABLE = (
    *(TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError),
    pickle.PicklingError,
)
_SEQUENCES = (list, tuple, set, deque)
_MAPPINGS = (dict, OrderedDict)
_REGISTERED = ("_parameters", "_buffers", "_modules")


def own_structure(model: nn.Module) -> nn.Module:
    """The same modules, containers and flags as objects of their own, with the same tensors.

    Running a model puts it in eval mode, and replaces its parameters for as long as it runs; what
    another thread does with the model at that time would see it. A call works on this copy instead.

    Args:
        model: any module; left as it is.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> own = own_structure(net).eval()
        >>> own.weight is net.weight, net.training
        (True, True)
    """
    own = restructured(model, {id(tensor): tensor for tensor in tensors_of(model)})
    for module in own.modules():
        if type(module).train is not nn.Module.train:
            _forget_by_device(vars(module))
    return own


def _forget_by_device(held: dict[str, Any]) -> None:
    """Leave out what a module that prepares for its mode has made of its weights for a device.

    Attention with a bias for each offset, in timm, gathers the biases once for each device, until
    it is trained again. What was gathered in earlier runs would be constants, that heads have to
    stay for.
    """
    for name, value in held.items():
        if type(value) in _MAPPINGS and name not in _REGISTERED:
            kept = {k: v for k, v in value.items() if not (_made(v) and _names_device(k))}
            if len(kept) < len(value):
                held[name] = type(value)(kept)


def _made(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


def _names_device(key: Any) -> bool:
    """Whether a key is a device, the name of one, or a tuple with one in it."""
    if isinstance(key, tuple):
        return any(map(_names_device, key))
    if isinstance(key, str):
        return attempt(lambda: torch.device(key)) is None
    return isinstance(key, torch.device)


def restructured(model: nn.Module, tensors: dict[int, Any]) -> nn.Module:
    """A copy of a model with other tensors, or the same, in the places of its own.

    Of a model that holds what cannot be copied (a lock, an open file), modules and plain
    containers are copied, and the rest is shared.

    Args:
        model: left as it is.
        tensors: by the identity of those of the model.
    """
    try:
        with no_warnings():  # of classes that are deprecated
            copied = copy.deepcopy(model, dict(tensors))
    except _NOT_COPYABLE:
        copied = _copied(model, dict(tensors))
    modules = {id(a): b for a, b in zip(model.modules(), copied.modules(), strict=True)}
    for module in copied.modules():
        _rebind(vars(module), modules)
    return copied


def _rebind(held: dict[Any, Any], modules: dict[int, nn.Module]) -> None:
    """Functions that modules hold, such as hooks and other `forward`s, speak of the copies."""
    for name, value in list(held.items()):
        if isinstance(value, FunctionType):
            held[name] = _rebound(value, modules)
        elif type(value) in _MAPPINGS:
            _rebind(value, modules)


def _rebound(
    function: FunctionType, modules: dict[int, nn.Module], around: frozenset[int] = frozenset()
) -> FunctionType:
    """A function with copies in place of the modules that it is closed over, if there are any.

    Args:
        function: of the model.
        modules: the copies, by the identity of what they are copies of.
        around: functions that hold this one, which may hold each other.
    """
    cells = function.__closure__ or ()
    inside = around | {id(function)}
    found = tuple(_cell(cell, modules, inside) for cell in cells)
    if all(one is other for one, other in zip(found, cells, strict=True)):
        return function
    code, names = function.__code__, function.__globals__
    made = FunctionType(code, names, function.__name__, function.__defaults__, found)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _cell(cell: CellType, modules: dict[int, nn.Module], around: frozenset[int]) -> CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return cell
    if isinstance(content, nn.Module) and id(content) in modules:
        return CellType(modules[id(content)])
    if isinstance(content, MethodType) and id(content.__self__) in modules:
        return CellType(MethodType(content.__func__, modules[id(content.__self__)]))
    if isinstance(content, FunctionType) and id(content) not in around:
        inner = _rebound(content, modules, around)
        return cell if inner is content else CellType(inner)
    return cell


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, nn.Module):
        made = known[id(value)] = type(value).__new__(type(value))
        vars(made).update({name: _copied(item, known) for name, item in vars(value).items()})
        return made
    if type(value) in _MAPPINGS:
        mapping = known[id(value)] = type(value)()
        mapping.update((key, _copied(item, known)) for key, item in value.items())
        return mapping
    if type(value) in _SEQUENCES:
        items = [_copied(item, known) for item in value]
        return known.setdefault(id(value), type(value)(items))
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _copied(value.__self__, known))
    if type(value) is partial:
        args, keywords = _copied(value.args, known), _copied(value.keywords, known)
        return partial(_copied(value.func, known), *args, **keywords)
    return value
