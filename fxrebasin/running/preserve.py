"""Run a model and leave it exactly as it was found."""

from __future__ import annotations

import pickle
import random
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from operator import is_
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import (
    is_traceable_wrapper_subclass,
)

from fxrebasin.running.flex import flex_attention_written_out
from fxrebasin.running.modes import modes_off
from fxrebasin.running.randomness import OwnNumbers
from fxrebasin.running.switches import shared
from fxrebasin.running.watching import OperatorMode

_Undo: TypeAlias = Callable[[], None]
Attributes: TypeAlias = list[tuple[Any, tuple[Any, ...], tuple[Any, ...]]]
"""Containers of a model with what was in them."""
_HOLDERS = (torch.Tensor, dict, list, tuple, set, deque)


@contextmanager
def preserve(model: nn.Module, numbers: OwnNumbers | None = None) -> Iterator[nn.Module]:
    """Put `model` in eval mode without gradients, and undo every trace of what is run inside.

    On leaving, even through an exception, these are as they were, bit for bit: each module's
    training flag, its attributes, the contents of the dicts, lists, sets and deques they hold
    (models cache tensors there in `forward`), its registered parameters, buffers and submodules,
    every tensor's data, `requires_grad` and `.grad`, the random state of torch (CPU, and CUDA if it
    is in use), numpy and Python, the grad mode, and the fast path of `nn.MultiheadAttention`, which
    is off inside: it fuses a layer into one operator. `flex_attention` compiles nothing. Operators
    draw from generators of this call, the same numbers every time, so that other threads draw what
    they would have drawn without it.

    Nothing is copied up front. A dispatch mode sees every operator and copies the storage of one
    of the model's tensors just before the first operator that writes to it. Writes that bypass
    the dispatcher (through numpy or a raw pointer) are not seen, and neither are attributes of
    objects that are not modules.

    Args:
        model: any module.
        numbers: what operators draw from; generators with the seed 0 when left out.

    Example:
        >>> net = nn.Dropout().train()
        >>> with preserve(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    numbers = numbers or OwnNumbers(0)
    values = list(_values_of(model))
    undo = [*_random_states(numbers), *_module_states(model, values)]
    guard = WriteGuard(_tensors_among(values), numbers)
    undo += [guard.restore, *_tensor_states(guard.tensors)]
    try:
        with torch.no_grad(), _no_fast_path(), flex_attention_written_out(), guard:
            set_eval(model)
            yield model
    finally:
        for step in reversed(undo):
            step()


@contextmanager
def _slow_path() -> Iterator[None]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


_no_fast_path = shared(_slow_path)


def set_eval(model: nn.Module) -> None:
    """Call the model's own `eval`, which may do more than set flags (merge adapters).

    Args:
        model: any module; those that refuse to change mode have their flags set.
    """
    if not any(module.training for module in model.modules()):
        return
    try:
        model.eval()
    except NotImplementedError:  # the modules that torch.export makes refuse to change mode
        for module in model.modules():
            module.training = False


def _random_states(numbers: OwnNumbers) -> list[_Undo]:
    """Undo steps for generators of the process that the model's own code draws from or seeds.

    Where nobody drew, nothing is put back: another thread may draw at that very time.
    """
    numpy_state, python_state = np.random.get_state(legacy=False), random.getstate()
    drawn = pickle.dumps(numpy_state)

    def restore_numpy() -> None:
        if pickle.dumps(np.random.get_state(legacy=False)) != drawn:
            np.random.set_state(numpy_state)

    def restore_python() -> None:
        if random.getstate() != python_state:
            random.setstate(python_state)

    return [*_torch_states(numbers), restore_numpy, restore_python]


def _torch_states(numbers: OwnNumbers) -> list[_Undo]:
    cpu, seed = torch.get_rng_state(), torch.initial_seed()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        # What is drawn inside is the model's own unless it seeds: all else is of other threads.
        others = threading.active_count() > 1
        if others and torch.initial_seed() == seed and not numbers.drew_others:
            return
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return [restore]


def _module_states(model: nn.Module, held: Iterable[Any]) -> list[_Undo]:
    """Undo steps for the attributes of all modules and for the containers among them."""
    modules = [(module, module.training) for module in model.modules()]
    containers = [
        (value, tuple(value), tuple(value.values()) if isinstance(value, dict) else ())
        for value in held
        if isinstance(value, dict | list | set | deque)
    ]

    def restore_containers() -> None:
        for container, items, values in containers:
            if container or items:
                _restore_container(container, items, values)

    def restore_flags() -> None:  # scripted submodules keep theirs outside __dict__
        for module, training in modules:
            if module.training != training:
                module.training = training

    return [restore_flags, restore_containers]


def attributes_of(model: nn.Module) -> Attributes:
    """What tells whether a model has put something else into its attributes or containers since.

    Args:
        model: any module.
    """
    return [
        (value, tuple(value), tuple(_inside(value)))
        for value in _values_of(model)
        if isinstance(value, dict | list | set | deque)
    ]


def same_attributes(one: Attributes, other: Attributes) -> bool:
    """Whether a model held the same objects both times.

    Args:
        one: from `attributes_of`.
        other: from `attributes_of`, of the same model.
    """
    return len(one) == len(other) and all(
        left[0] is right[0]
        and _same_objects(left[1], right[1])
        and _same_objects(left[2], right[2])
        for left, right in zip(one, other, strict=True)
    )


def _values_of(model: nn.Module) -> Iterator[Any]:
    """Every attribute of every module, and what is inside the containers among them, once."""
    pending: list[Any] = [vars(module) for module in model.modules()]
    pending += [*model.parameters(), *model.buffers()]  # scripted submodules hold theirs elsewhere
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict | list | tuple | deque):
            pending.extend(item for item in _inside(value) if isinstance(item, _HOLDERS))


def _inside(container: Collection[Any]) -> Collection[Any]:
    return container.values() if isinstance(container, dict) else container


def _restore_container(
    container: dict[Any, Any] | list[Any] | set[Any] | deque[Any],
    items: tuple[Any, ...],
    values: tuple[Any, ...],
) -> None:
    """Put back the items, and the values of a dict, if they are not the same objects in order."""
    if isinstance(container, dict):
        if not _same_objects(container, items) or not _same_objects(container.values(), values):
            container.clear()  # and refill, for the order is that of the state_dict
            container.update(zip(items, values, strict=True))
    elif not _same_objects(container, items):
        container.clear()
        if isinstance(container, set):
            container.update(items)
        else:
            container.extend(items)


def _same_objects(left: Collection[Any], right: Collection[Any]) -> bool:
    return len(left) == len(right) and all(map(is_, left, right))


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """Every tensor that a module holds, registered or not, also inside containers, and grads."""
    return _tensors_among(_values_of(model))


def _tensors_among(values: Iterable[Any]) -> list[torch.Tensor]:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return tensors + [t.grad for t in tensors if t.is_leaf and t.grad is not None]


def _tensor_states(tensors: Sequence[torch.Tensor]) -> list[_Undo]:
    return [undo for tensor in tensors for undo in (_flags_undo(tensor), _data_undo(tensor))]


def _flags_undo(tensor: torch.Tensor) -> _Undo:
    requires_grad, leaf = tensor.requires_grad, tensor.is_leaf
    grad = tensor.grad if leaf else None

    def undo() -> None:
        if not leaf:
            return
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if tensor.grad is not grad:
            tensor.grad = grad

    return undo


def _data_undo(tensor: torch.Tensor) -> _Undo:
    """Undo `tensor.data = other`, `set_` and `resize_`, which change what the tensor looks at."""
    if _storage(tensor) is None:
        return lambda: None
    alias = tensor.detach()

    def undo() -> None:
        if _view_of(tensor) != _view_of(alias):
            tensor.data = alias

    return undo


def _view_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage that holds the tensor's data; None if there is none of its own."""
    plain = tensor.layout == torch.strided and not is_traceable_wrapper_subclass(tensor)
    if not plain or nn.parameter.is_lazy(tensor) or torch._is_functional_tensor(tensor):
        return None
    return tensor.untyped_storage()


class WriteGuard(OperatorMode):
    """Copies a protected storage just before the first operator that writes to it.

    Args:
        tensors: those that are protected.
        numbers: what operators draw from.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], numbers: OwnNumbers) -> None:
        super().__init__()
        self._numbers = numbers
        self.tensors = tensors  # kept alive, so that the addresses below stay theirs
        storages = [_storage(tensor) for tensor in tensors if not tensor.is_meta]
        self._protected = {storage._cdata: storage for storage in storages if storage is not None}
        self._copies: dict[int, torch.UntypedStorage] = {}

    @property
    def wrote(self) -> bool:
        """Whether any protected storage holds something else now."""
        pairs = [(self._protected[key], copy) for key, copy in self._copies.items()]
        return any(
            now.nbytes() != before.nbytes() or not torch.equal(_bytes(now), _bytes(before))
            for now, before in pairs
        )

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        func, kwargs = self._numbers.instead(func, args, kwargs)
        if not _written_arguments(func):
            return func(*args, **kwargs)
        for tensor in written_tensors(func, args, kwargs):
            self._before_write(tensor)
        return func(*args, **kwargs)

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """What tensors hold now is not undone: the caller has written to them.

        Args:
            tensors: protected ones.
        """
        for tensor in tensors:
            storage = _storage(tensor)
            if storage is not None:
                self._copies.pop(storage._cdata, None)

    def _before_write(self, tensor: torch.Tensor) -> None:
        storage = _storage(tensor)
        key = 0 if storage is None else storage._cdata  # an address, never 0
        if key in self._protected and key not in self._copies:
            with modes_off():  # a fake tensor mode would copy nothing
                self._copies[key] = self._protected[key].clone()

    def restore(self) -> None:
        """Put back what was written over."""
        for key, copy in self._copies.items():
            storage = self._protected[key]
            if storage.nbytes() != copy.nbytes():
                storage.resize_(copy.nbytes())
            storage.copy_(copy)


def written_tensors(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[torch.Tensor]:
    """The tensors among the arguments that the operator writes to."""
    for position, name in _written_arguments(func):
        value = args[position] if position < len(args) else kwargs.get(name)
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, torch.Tensor):
                yield item


@cache
def _written_arguments(func: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that the operator writes to.

    batch_norm updates its statistics in training mode without saying so in its schema.
    """
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or argument.name in ("running_mean", "running_var")
    )
