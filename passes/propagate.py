"""Run a model once and record what its operators say about the axes of its tensors.

The forward pass runs under a dispatch mode that sees ATen operators, on meta tensors: parameters
and inputs have shapes but no data. Tensors that depend on neither (index tables, masks, position
ranges) are constants; they keep their data, so that indices mean something. A model that looks at
the data of its activations is run again on real tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.errors import FxRebasinError, TraceError
from fxrebasin.inputs import wrong_inputs
from fxrebasin.labels import Value, pinned_value
from fxrebasin.passes.call_site import CallSite
from fxrebasin.passes.dry_run import on_meta
from fxrebasin.passes.ledger import Ledger, elements_field
from fxrebasin.passes.preserve import preserve
from fxrebasin.passes.rules.registry import RULES, Call, Rule, pin_everything
from fxrebasin.passes.tracking import (
    Replay,
    Track,
    begin_track,
    constant_value,
    get_track,
    mark_view,
    refresh,
    set_track,
    write,
)
from fxrebasin.provenance import Origin
from fxrebasin.redraw import redrawn

_BUFFER = "_fxrebasin_buffer"

_SHAPED_LIKE = frozenset(
    overload
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones"),
        *("new_full", "new_empty", "new_empty_strided"),
    )
    for overload in [getattr(torch.ops.aten, name).default]
)


_OVERWRITING = frozenset(
    overload
    for name in ("copy_", "zero_", "fill_")
    for packet in [getattr(torch.ops.aten, name)]
    for overload in [getattr(packet, item) for item in packet.overloads()]
)
"""Operators that write without reading what was there."""


_LOOKING = frozenset(
    overload
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
    for packet in [getattr(torch.ops.aten, name)]
    for overload in [getattr(packet, item) for item in packet.overloads()]
)
"""Operators by which a model looks at data: what it does next may be another with other inputs."""

_MORE_RUNS = 4
"""Runs on other inputs, as long as they read state that was not read before (other experts)."""


@dataclass(frozen=True, eq=False)
class Record:
    """One operator call, for explaining: its operands and outputs with their fields."""

    origin: int
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]


@dataclass
class Propagation:
    """The result of running a model: constraints, records, and what had no rule."""

    ledger: Ledger = field(default_factory=Ledger)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)


def propagate(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    state_buffers: Sequence[str] = (),
) -> Propagation:
    """Record the constraints of one forward pass of `model` in eval mode.

    Raises:
        InputError: the model does not run on these inputs.
    """
    try:
        return _run(model, args, kwargs, state_buffers, real=False)
    except FxRebasinError:
        raise
    except Exception as error:
        if any(tensor.device.type == "meta" for tensor in model.state_dict().values()):
            raise wrong_inputs(model, args, kwargs, error) from error
    try:
        with _without_mkldnn():
            return _run(model, args, kwargs, state_buffers, real=True)
    except FxRebasinError:
        raise
    except Exception as error:
        raise wrong_inputs(model, args, kwargs, error) from error


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Recurrent layers come as ordinary operators and not as one of mkldnn's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            flags.__exit__(None, None, None)


def _run(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    state_buffers: Sequence[str],
    real: bool,
) -> Propagation:
    with preserve(model):
        site = CallSite(model)
        mode = Propagator(site, real)
        stand_ins = _stand_ins(model, mode, state_buffers)
        given: tuple[Any, ...] = (tuple(args), dict(kwargs))
        others = (redrawn(given, seed) for seed in range(1, 1 + _MORE_RUNS))
        for values in chain((given,), others):
            known = mode.result.ledger.places()
            inputs = pytree.tree_map_only(Tensor, mode.add_input, values)
            with site.watch(), mode:
                output = functional_call(model, stand_ins, *inputs, tie_weights=False)
            mode.pin_outputs(output)
            if not mode.looked_at_data or mode.result.ledger.places() == known:
                break
    return mode.result


def _stand_ins(
    model: nn.Module, mode: Propagator, state_buffers: Sequence[str]
) -> dict[str, Tensor]:
    """Tracked tensors for parameters, clones for buffers; tied tensors share one stand-in."""
    stand_ins: dict[str, Tensor] = {}
    first: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in first:
            first[id(parameter)] = mode.add_state(name, parameter)
        stand_ins[name] = first[id(parameter)]
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if id(buffer) not in first:
            if name in state_buffers:
                first[id(buffer)] = mode.add_state(name, buffer)
            else:
                first[id(buffer)] = mode.add_buffer(name, buffer)
        stand_ins[name] = first[id(buffer)]
    return stand_ins


class Propagator(TorchDispatchMode):
    """Applies the rule of each operator as it is called."""

    def __init__(self, site: CallSite, real: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Propagation()
        self.site = site
        self.real = real
        self.looked_at_data = False

    # State and values -------------------------------------------------------------------------

    def add_state(self, name: str, tensor: Tensor) -> Tensor:
        """A tracked stand-in for a state tensor."""
        stand_in = tensor.detach().clone() if self.real else _to_meta(tensor.detach())
        self.result.shapes[name] = tuple(tensor.shape)
        value = Value(tuple(tensor.shape), elements_field(name, tensor.shape))
        set_track(stand_in, Track(value, state=name, name=name))
        return stand_in

    def add_buffer(self, name: str, tensor: Tensor) -> Tensor:
        """A constant, unless a normalisation reads it as running statistics."""
        stand_in = tensor.detach().clone()
        self.result.shapes[name] = tuple(tensor.shape)
        setattr(stand_in, _BUFFER, name)
        return stand_in

    def add_input(self, tensor: Tensor) -> Tensor:
        """A tracked stand-in for a model input, all of whose axes are pinned."""
        stand_in = tensor.detach().clone() if self.real else _to_meta(tensor.detach())
        set_track(stand_in, Track(pinned_value(tensor.shape, "model input"), name="input"))
        return stand_in

    def lookup(self, tensor: Tensor) -> Value:
        """What is known of a tensor; of a constant, where it is not uniform."""
        found = get_track(tensor)
        return constant_value(tensor) if found is None else refresh(found, self.result.ledger)

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The tensor itself, if it is a constant whose values are known."""
        known = get_track(tensor) is None and tensor.device.type != "meta"
        return tensor if known else None

    def running_statistics(self, tensor: Tensor) -> Value:
        """The value of a tensor that a normalisation reads: a buffer becomes state."""
        name = getattr(tensor, _BUFFER, None)
        if name is None:
            return self.lookup(tensor)
        return Value(tuple(tensor.shape), elements_field(name, tensor.shape))

    # Dispatch ---------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _SHAPED_LIKE:
            return func(_on_cpu(args[0]), *args[1:], **_constant_options(options))
        tensors = _tensors((args, options))
        if not any(get_track(item) is not None for item in tensors):
            return self._untracked(func, args, options)
        self.looked_at_data |= func in _LOOKING
        if func not in RULES:
            with self:
                decomposed = func.decompose(*args, **options)
            if decomposed is not NotImplemented:
                return decomposed
        with _disable_current_modes():
            return self._tracked(func, args, options)

    def _untracked(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """An operator on constants is just run."""
        result = func(*args, **_constant_options(options))
        argument = _viewed(func)
        if argument:
            bound = _bind(func, args, options)
            for index, tensor in enumerate(_tensors(result)):
                mark_view(tensor, bound[argument], Replay(func, bound, argument, index))
        return result

    def _tracked(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        result = self.result
        result.operators[str(func)] = result.operators.get(str(func), 0) + 1
        node, source = self.site.describe()
        result.ledger.origins.append(Origin(str(func), node, source))
        bound = _bind(func, args, options)
        written = _written(func, bound)
        touched = [] if written else _touched(func, bound)
        for tensor in written:
            begin_track(tensor)  # while a constant still holds what it held before
        strides = [tensor.stride() for tensor in _tensors(list(bound.values()))]
        computed = self._execute(func, args, options)
        outputs = written or _tensors(computed)
        call = Call(
            result.ledger,
            func,
            bound,
            outputs,
            self.lookup,
            self.constant,
            self.running_statistics,
            strides,
        )
        for track in filter(None, map(get_track, call.tensors())):
            refresh(track, result.ledger)  # it is read, also by a rule that does not look at it
        inputs = tuple(self._named(tensor) for tensor in call.tensors())
        rule = RULES.get(func)
        if rule is None and (outputs or touched):
            rule = pin_everything("unknown operator")
            result.unknown.setdefault(str(func))
        else:
            touched = []
        values = [] if rule is None else self._apply(rule, call)
        for tensor in touched:
            self._write(tensor, pinned_value(tensor.shape, "unknown operator"), False)
        if written:
            for tensor, value in zip(written, values, strict=True):
                self._write(tensor, value, func in _OVERWRITING)
        else:
            self._attach(func, bound, outputs, values)
        self._record(inputs, outputs, values)
        return written[0] if written and isinstance(computed, Tensor) else computed

    def _apply(self, rule: Rule, call: Call) -> list[Value]:
        try:
            return list(rule(call))
        except Exception as error:
            origin = self.result.ledger.origins[-1]
            raise TraceError(
                f"the rule of {origin} failed on shapes "
                f"{[tuple(tensor.shape) for tensor in call.tensors()]}: "
                f"{type(error).__name__}: {error}. This is a bug of fxrebasin; please report it."
            ) from error

    def _execute(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.real:
            return func(*args, **options)
        return on_meta(func, args, options)

    def _attach(
        self,
        func: Any,
        bound: Mapping[str, Any],
        outputs: Sequence[Tensor],
        values: Sequence[Value],
    ) -> None:
        argument = _viewed(func)
        base = get_track(bound[argument]) if argument else None
        for index, (tensor, value) in enumerate(zip(outputs, values, strict=True)):
            track = Track(value)
            if base is not None:
                track.base, track.seen = base, base.version
                track.replay = Replay(func, bound, argument, index)
            set_track(tensor, track)

    def _write(self, tensor: Tensor, value: Value, overwritten: bool) -> None:
        track = begin_track(tensor)
        if tuple(value.shape) != tuple(track.value.shape):
            track.value = value
            return
        write(track, value, self.result.ledger, overwritten)

    def _named(self, tensor: Tensor) -> tuple[str, Value]:
        track = get_track(tensor)
        if track is None:
            name = getattr(tensor, _BUFFER, "constant")
            return name, constant_value(tensor) if name == "constant" else Value(
                tuple(tensor.shape)
            )
        return track.name, track.value

    def _record(
        self,
        inputs: tuple[tuple[str, Value], ...],
        outputs: Sequence[Tensor],
        values: Sequence[Value],
    ) -> None:
        origin = self.result.ledger.origin
        node = self.result.ledger.origins[origin].node
        named = []
        for index, (tensor, value) in enumerate(zip(outputs, values, strict=True)):
            name = node if index == 0 else f"{node}[{index}]"
            track = get_track(tensor)
            if track is not None:
                track.name = name
            named.append((name, value))
        self.result.records.append(Record(origin, inputs, tuple(named)))

    def pin_outputs(self, output: Any) -> None:
        """The model's outputs are seen by the user: none of their axes may move."""
        ledger = self.result.ledger
        for index, tensor in enumerate(_output_tensors(output)):
            if get_track(tensor) is None:
                continue
            ledger.origins.append(Origin("output", f"output[{index}]"))
            value = self.lookup(tensor)
            pinned = pinned_value(value.shape, "model output")
            ledger.join([*pinned.fields, *value.fields])
            self.result.records.append(
                Record(ledger.origin, (self._named(tensor),), ((f"output[{index}]", pinned),))
            )


def _tensors(found: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, which nest in lists at most."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, Mapping):
        found = found.values()
    elif not isinstance(found, (list, tuple)):
        return []
    return [tensor for item in found for tensor in _tensors(item)]


def _output_tensors(output: Any) -> list[Tensor]:
    """Tensors in containers and dataclasses; other objects, such as caches, are no outputs."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        items = list(output.values())
    elif isinstance(output, (list, tuple)):
        items = list(output)
    elif is_dataclass(output) and not isinstance(output, type):
        items = [getattr(output, item.name) for item in fields(output)]
    else:
        return []
    return [tensor for item in items for tensor in _output_tensors(item)]


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that a constant can be made like."""
    if tensor.device.type != "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _constant_options(options: dict[str, Any]) -> dict[str, Any]:
    """Constants made inside `forward` on the model's device keep their data."""
    device = options.get("device")
    if device is not None and torch.device(device).type == "meta":
        return {**options, "device": torch.device("cpu")}
    return options


def _bind(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by schema name, with defaults."""
    bound: dict[str, Any] = {}
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            bound[argument.name] = args[index]
        elif argument.name in options:
            bound[argument.name] = options[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def _touched(func: Any, bound: Mapping[str, Any]) -> list[Tensor]:
    """All that an operator may write to, also without returning it."""
    names = [
        argument.name
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors([bound.get(name) for name in names])


@cache
def _written_names(func: Any) -> tuple[str, ...]:
    """Arguments that an operator writes to; running statistics are written in training only."""
    if not any(item.alias_info is not None for item in func._schema.returns):
        return ()
    return tuple(
        str(argument.name)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, bound: Mapping[str, Any]) -> list[Tensor]:
    return [bound[name] for name in _written_names(func) if isinstance(bound.get(name), Tensor)]


@cache
def _viewed(func: Any) -> str:
    """The name of the argument that the outputs are views of, if any."""
    for argument in func._schema.arguments:
        if argument.alias_info is not None and not argument.alias_info.is_write:
            return str(argument.name)
    return ""
