"""Run a model for its shapes and its operators, without computing with its parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import FxRebasinError
from fxrebasin.running.devices import OwnDevice, device_of
from fxrebasin.running.given import Given, remade
from fxrebasin.running.modes import modes_off
from fxrebasin.running.numberless import READS
from fxrebasin.running.on_meta import on_meta
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve, written_tensors
from fxrebasin.running.randomness import python_numbers
from fxrebasin.running.watching import OperatorMode

_Key: TypeAlias = tuple[Any, ...]


# What torch.export adds or leaves out, and what it writes in another way.
_ATEN = torch.ops.aten
_CHECKS = (_ATEN._assert_tensor_metadata.default,)
_NO_OPS = (
    *(_ATEN.alias.default, _ATEN.slice.Tensor),
    *(_ATEN._to_copy.default, _ATEN.lift_fresh_copy.default),
)
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.expand.default)
_BROADCASTING = (_ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.add_.Tensor, _ATEN.mul_.Tensor)
_SAME_AS = {_ATEN._unsafe_view.default: _ATEN.view.default}


@dataclass(frozen=True)
class DryRun:
    """The output of a dry run (meta tensors where it depends on the input) and its program.

    Two runs with equal programs apply the same operators to the same parameters, buffers,
    constants and intermediate values: they compute the same function of the state, as far as this
    input shows. The order tells programs apart only if a tensor is written to. Where random numbers
    are drawn of Python or numpy, they may be in any constant.
    """

    output: Any
    program: tuple[_Key, ...] | frozenset[_Key]
    draws: bool
    draws_in_python: bool
    _given: Given = field(repr=False, compare=False)
    _keys: Callable[[Sequence[Any]], _Key] = field(repr=False, compare=False)

    def outputs(self, wanted: Wanted, *, strict: bool = True) -> dict[str, Any]:
        """Where the outputs that count come from: values or state of the program, by name.

        Raises:
            InputError: as `fxrebasin.running.outputs.counted`.
        """
        found = counted(self.output, wanted, self._given, strict=strict)
        return dict(zip(found, self._keys(list(found.values())), strict=True))

    def put(self, wanted: Wanted) -> tuple[str, ...]:
        """Names of the outputs that count and were put into containers or objects passed in."""
        found = counted(self.output, wanted, self._given, strict=False)
        return tuple(name for name in self._given.put() if name in found)


def dry_run(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], wanted: Wanted = None
) -> DryRun:
    """Run `model` on meta tensors: shapes and operators, much cheaper than with numbers.

    Whatever depends on a parameter or on a floating-point input is a meta tensor. The rest
    (buffers, tables, masks, positions, token ids) is computed, so that its values can be asked
    for. A model that asks for the value of an activation raises here, though it would not when it
    is really run; whatever the model raises is passed on.

    Example:
        >>> dry_run(nn.Linear(3, 4), (torch.zeros(2, 3),), {}).output.shape
        torch.Size([2, 4])
    """
    with preserve(model), torch.no_grad():
        recorder, numbers = _Recorder(model), python_numbers()
        with recorder, _Numberless(device_of(model, (args, kwargs))):
            meta_args, meta_kwargs = remade((tuple(args), dict(kwargs)), recorder.input)
            given = Given(meta_args, meta_kwargs)
            output = reduced(model, model(*meta_args, **meta_kwargs), wanted)
        in_python = python_numbers() != numbers
    draws = recorder.draws > 0 or in_python
    return DryRun(output, recorder.recorded(), draws, in_python, given, recorder.keys)


class _NumbersAskedForError(FxRebasinError):
    """A model gets hold of the memory of a tensor that would have numbers if it were really run."""


class _Numberless(OwnDevice):
    """Refuses what would show a model that its activations have no numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in READS and args[0].is_meta:
            raise _NumbersAskedForError(f"{READS[func]} of a tensor without numbers")
        return super().__torch_function__(func, types, args, kwargs)


class _Recorder(OperatorMode):
    """Executes what depends on parameters or float inputs on meta tensors; records the program.

    Tensors have a key that says where they come from: the state, by name; an input, by number; the
    result of a recorded operator, by a digest of the operator and its arguments' keys; a constant,
    by its content. Operators on constants alone are not recorded, so that a graph in which they
    were folded has the same program; those that draw random numbers are, and each draws its own.

    An operator that works in place is recorded as its other form, since torch.fx turns `x += y`
    into `x + y`. What it writes to gets a new number, and a tensor that shares the memory, and so
    would tell the two forms apart, gets a key of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.program: list[_Key] = []
        self._device = next((p.device for p in model.parameters() if not p.is_meta), "cpu")
        self._state = {
            **{_storage_id(buffer): name for name, buffer in model.named_buffers()},
            **{_storage_id(parameter): name for name, parameter in model.named_parameters()},
        }
        self._unknown = {_storage_id(parameter) for parameter in model.parameters()}
        self._written: dict[int, int] = {}  # constant storage that was written into: ordinal
        self._keys: dict[int, tuple[_Key, int]] = {}  # id of a tensor: its source, and as of when
        self._last_write: dict[int, int] = {}  # storage: when it was last written to
        self._inputs = 0
        self.draws = 0
        self._alive: list[torch.Tensor] = []  # so that ids and storages stay theirs

    def input(self, value: torch.Tensor) -> Any:
        """The stand-in for a model input: floating-point and complex tensors become meta."""
        with modes_off():
            real = not (value.is_floating_point() or value.is_complex())
            self._inputs += 1
            made = value.detach() if real else torch.empty_like(value, device="meta")
            return self._made_by(("input", self._inputs), [made])[0]

    def recorded(self) -> tuple[_Key, ...] | frozenset[_Key]:
        """All operators; in their order only if it matters."""
        return tuple(self.program) if self._last_write else frozenset(self.program)

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        leaves = _flat((*args, *kwargs.values()))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        unknown = any(self._is_unknown(tensor) for tensor in tensors)
        if not unknown and kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = self._device  # that of an activation; but this is a constant
        random = torch.Tag.nondeterministic_seeded in func.tags
        if not (unknown or random or any(self._has_key(tensor) for tensor in tensors)):
            return func(*args, **kwargs)
        if func in _CHECKS:
            return None  # of what is in the keys of its argument
        if func in _NO_OPS or func in _VIEWS:
            return self._followed(func, args, kwargs, unknown)
        if func is _ATEN.add.Tensor and not kwargs and self._adds_nothing(*args):
            result = on_meta(func, args, kwargs) if unknown else func(*args, **kwargs)
            if _geometry(args[0]) == _geometry(result) and self._goes_by(args[0], result):
                return result
        keys = self._least_keys(leaves) if func in _BROADCASTING else self.keys(leaves)
        self.draws += random
        drawn = (("draw", self.draws),) if random else ()
        how = (_name(func), *kwargs, *keys, *drawn)
        self.program.append(how)
        written = list(written_tensors(func, args, kwargs))
        self._note_writes(written, unknown)
        result = on_meta(func, args, kwargs) if unknown else func(*args, **kwargs)
        self._made_by(how, (*_flat((result,)), *written))
        return result

    def _adds_nothing(self, _: Any, right: Any) -> bool:
        """Whether a constant of zeros is added, which a mask is that leaves nothing out."""
        if not isinstance(right, torch.Tensor) or right.is_meta or self._has_key(right):
            return False
        with modes_off():
            return not (self._is_unknown(right) or right.any())

    def _followed(
        self,
        func: torch._ops.OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        unknown: bool,
    ) -> torch.Tensor:
        """What an operator returns that may do nothing, or tells a shape in several ways."""
        result: torch.Tensor = on_meta(func, args, kwargs) if unknown else func(*args, **kwargs)
        if func in _NO_OPS and self._is_the_same(args[0], result):
            return result
        how = (*self.keys([args[0]]), tuple(result.shape))
        if func in _NO_OPS:
            how = (*kwargs, *self.keys(_flat((*args, *kwargs.values()))))
        self.program.append((_name(func), *how))
        self._made_by(self.program[-1], [result])
        return result

    def _is_the_same(self, source: torch.Tensor, result: torch.Tensor) -> bool:
        """Whether a result is its argument, which then goes by the same key."""
        if _geometry(source) != _geometry(result):
            return False
        if not source.numel() or _storage_id(source) == _storage_id(result):
            return id(source) not in self._keys or self._goes_by(source, result)
        return self._goes_by(source, result)

    def _goes_by(self, source: torch.Tensor, result: torch.Tensor) -> bool:
        """Give a tensor the key of another of the same numbers, if that one's is not past."""
        storage = _storage_id(source)
        write = self._last_write.get(storage, 0)
        if id(source) in self._keys:
            origin, known = self._keys[id(source)]
        elif storage in self._state:
            origin, known = (self._state[storage], write), write
        else:
            return False
        if write > known:
            return False
        self._keys[id(result)] = (origin, len(self.program))
        self._alive.append(result)
        return True

    def _is_unknown(self, tensor: torch.Tensor) -> bool:
        return tensor.is_meta or _storage_id(tensor) in self._unknown

    def _has_key(self, tensor: torch.Tensor) -> bool:
        storage = _storage_id(tensor)
        return id(tensor) in self._keys or storage in self._state or storage in self._written

    def _note_writes(self, written: Sequence[torch.Tensor], unknown: bool) -> None:
        for tensor in written:
            storage = _storage_id(tensor)
            if not tensor.is_meta and not self._has_key(tensor):  # it was a constant until now
                self._alive.append(tensor)
                self._written[storage] = len(self._written)
                self.program.append(("written", _content(tensor.untyped_storage())))
            if unknown:
                self._unknown.add(storage)
            self._keys.pop(id(tensor), None)
            self._last_write[storage] = len(self.program)

    def keys(self, leaves: Sequence[Any]) -> _Key:
        """What tells one argument from another: the key of a tensor, else the value."""
        return tuple(
            self._key(leaf) if isinstance(leaf, torch.Tensor) else _value_key(leaf)
            for leaf in leaves
            if not isinstance(leaf, torch.device)
        )

    def _least_keys(self, leaves: Sequence[Any]) -> _Key:
        """Keys of arguments that are broadcast: constants without axes that only repeat them."""
        return tuple(key for leaf in leaves for key in self._least_key(leaf))

    def _least_key(self, leaf: Any) -> _Key:
        if not isinstance(leaf, torch.Tensor) or leaf.is_meta or self._has_key(leaf):
            return self.keys([leaf])
        with modes_off():
            while leaf.numel() and leaf.dim() and _repeats(leaf):
                leaf = leaf[0]
            return (("constant", _content(leaf), leaf.dtype, tuple(leaf.shape)),)

    def _key(self, tensor: torch.Tensor) -> _Key:
        storage = _storage_id(tensor)
        view = _geometry(tensor)
        write = self._last_write.get(storage, 0)
        if id(tensor) in self._keys:
            origin, known = self._keys[id(tensor)]
            return (*origin, *view) if write <= known else (*origin, "written", write, *view)
        for names in (self._state, self._written):
            if storage in names:
                return (names[storage], write, *view)
        return ("constant", _content(tensor), *view)

    def _made_by(self, how: _Key, values: Sequence[Any]) -> Sequence[Any]:
        """Give what an operator returned or wrote to its source as a key."""
        source = hashlib.sha256(repr(how).encode()).digest()
        for index, value in enumerate(values):
            if isinstance(value, torch.Tensor) and id(value) not in self._keys:
                self._keys[id(value)] = ((source, index), len(self.program))
                self._alive.append(value)
        return values


def _value_key(value: Any) -> _Key:
    """Type and value of a plain argument; of other objects, which may not compare, the type."""
    plain = isinstance(value, bool | int | float | complex | str | torch.dtype | NoneType)
    return (type(value).__name__, value) if plain else (type(value).__name__,)


def _name(func: torch._ops.OpOverload) -> str:
    """Name and overload; those of the usual form, and of that which does not work in place."""
    func = _SAME_AS.get(func, func)
    name = func._schema.name.removesuffix("_")
    return f"{name}.{func._overloadname}"


def _repeats(tensor: torch.Tensor) -> bool:
    """Whether all along the first axis has the same bits."""
    rows = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    bits = rows.reshape(len(rows), -1).view(torch.uint8)
    return bool((bits == bits[:1]).all())


def _geometry(tensor: torch.Tensor) -> _Key:
    return tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _storage_id(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def _content(tensor: torch.Tensor | torch.UntypedStorage) -> bytes:
    with modes_off():
        if isinstance(tensor, torch.Tensor) and not tensor.numel():
            return b""  # also on the meta device
        if isinstance(tensor, torch.UntypedStorage):
            tensor = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor)
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).digest()


def _flat(values: Sequence[Any]) -> list[Any]:
    """The arguments or results of an operator, those in lists one by one."""
    flat: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            flat += _flat(value)
        else:
            flat.append(value)
    return flat
