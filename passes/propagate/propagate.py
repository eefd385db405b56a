"""Run a model once and record what its operators say about the axes of its tensors.

The forward pass runs under a dispatch mode that sees ATen operators, on meta tensors: parameters
and inputs have shapes but no data. Tensors that depend on neither (index tables, masks, position
ranges) are constants; they keep their data, so that indices mean something. A model that looks at
the data of its activations is run again on real tensors.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.choices import Choices
from fxrebasin.errors import FxRebasinError, TraceError
from fxrebasin.models.example_inputs import wrong_inputs
from fxrebasin.models.redraw import redrawn
from fxrebasin.passes.fields.elements import elements_field
from fxrebasin.passes.fields.fields import Elements, Value, pinned_value
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.origin import CONSTANT, INPUT, Origin
from fxrebasin.passes.propagate.call_site import CallSite
from fxrebasin.passes.propagate.constants import FunctionWatch
from fxrebasin.passes.propagate.escapes import Escapes, NeedsDataError
from fxrebasin.passes.propagate.identities import with_square_units
from fxrebasin.passes.propagate.model_state import Held, Role, held_tensors
from fxrebasin.passes.propagate.relied import Relied, place_of
from fxrebasin.passes.propagate.routing import (
    Looks,
    raised_by_python,
    spread,
    unread_state,
    with_more_rows,
    with_third_marks,
)
from fxrebasin.passes.propagate.spreads import (
    Along,
    Later,
    known,
    of_constant,
    of_input,
    of_result,
    of_state,
)
from fxrebasin.passes.propagate.tracks import (
    LAZY,
    RESHAPING,
    Track,
    may_be_named,
    named,
    refresh,
    replay_of,
    spread_of_track,
    write,
)
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.numbers import LOOKING_UP
from fxrebasin.passes.rules.pointwise import pointwise, uniform
from fxrebasin.passes.rules.registry import RULES, Rule, pin_everything
from fxrebasin.running.flex import sees_flex_attention
from fxrebasin.running.messages import attempt, out_of_memory
from fxrebasin.running.on_meta import on_meta
from fxrebasin.running.operators import (
    INDIFFERENT,
    LOOKING,
    OVERWRITING,
    SHAPED_LIKE,
    UNIFORM,
    bind,
    name_of,
    strides_of,
    tensors_in,
    touched_by,
    viewed_by,
    writes,
    written_by,
)
from fxrebasin.running.outputs import Given, ReducingError, counted, reduced, remade
from fxrebasin.running.preserve import preserve, tensors_of
from fxrebasin.running.subclasses import has_own_operators

_NO_CHOICES = Choices()

_MORE_RUNS = 6
"""The most runs on other inputs, where a model looks at data."""

_NUMBERS_AT_MOST = 4
"""Lines that look at numbers of which larger and smaller ones are tried."""

_IDLE_RUNS = 2
"""How many runs on other inputs in a row may reach nothing new before these end."""

_TWICE = 2
"""By how much rows are multiplied, to see whether there are more looks then."""

_MORE_ROWS = (16, 64)
"""By how much rows are multiplied, if after that some state (other experts) was not read."""

_WORK_AT_MOST = 1 << 23
"""The most elements that operators may make in a run on more rows; each operator counts as some."""

_WORK_OF_AN_OPERATOR = 1 << 11


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
    notes: dict[str, None] = field(default_factory=dict)
    passing: Passing | None = None
    held: list[Held] = field(default_factory=list)
    recognised: dict[str, Held] = field(default_factory=dict)
    relied: Relied = field(default_factory=Relied)
    looked_at_data: bool = False

    def fork(self) -> Propagation:
        """A copy that constraints can be added to without adding them here."""
        return replace(self, ledger=self.ledger.fork())


@dataclass(frozen=True, eq=False)
class Passing:
    """Outputs that the model itself goes on with, and what was found before these were pinned."""

    outputs: tuple[ModelOutput, ...]
    without: Propagation

    def pinning(self, outputs: Sequence[ModelOutput]) -> Passing:
        """The same, with some more of the outputs pinned."""
        without = self.without.fork()
        for item in outputs:
            item.pin(without.ledger)
        return replace(self, without=without)


def propagate(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    choices: Choices = _NO_CHOICES,
    held: Sequence[Held] | None = None,
) -> Propagation:
    """Record the constraints of one forward pass of `model` in eval mode.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        choices: of the user: buffers that are state, outputs that count.
        held: the tensors of the model and what they are taken for, if that is known.

    Raises:
        InputError: the model does not run on these inputs, or it has no such outputs.
    """
    found: list[Propagation] = []
    tensors = held_tensors(model, choices.state_buffers) if held is None else held

    def run(kind: _Tensors) -> None:
        found.append(_run(model, args, kwargs, tensors, choices, kind))

    error = attempt(lambda: run(_Tensors.META))
    if error is not None and _may_run_otherwise(error):
        on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
        with _without_mkldnn():
            again = attempt(lambda: run(_Tensors.ALL_META if on_meta else _Tensors.REAL))
        error = error if on_meta and again is not None else again
    if isinstance(error, FxRebasinError):
        raise error
    if error is not None:
        raise wrong_inputs(model, args, kwargs, error) from error
    return found[0]


def _may_run_otherwise(error: Exception) -> bool:
    """Whether a model that does not run on meta tensors may run on others."""
    if out_of_memory(error):
        return False
    fails_on_meta = isinstance(error, NeedsDataError | ReducingError)
    return fails_on_meta or not isinstance(error, FxRebasinError)


class _Tensors(Enum):
    """What a model is run on.

    META: parameters and inputs have no data, constants have. REAL: everything has, for models that
    look at the data of activations. ALL_META: nothing has, for models without weights that make
    constants where their inputs are.
    """

    META = auto()
    REAL = auto()
    ALL_META = auto()


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
    held: Sequence[Held],
    choices: Choices,
    kind: _Tensors,
) -> Propagation:
    mode = Propagator(CallSite(model), kind)
    with torch.no_grad():  # what guards the model would look at each of these operators
        mode.add_constants(model)
        stand_ins = _stand_ins(held, mode)
    with preserve(model):
        outputs: list[ModelOutput] = []
        given: tuple[Any, ...] = (tuple(args), dict(kwargs))

        def run(
            values: Any, turned: str | None = None, answers: Sequence[bool] = (), far: int = 0
        ) -> None:
            inputs = remade(values, mode.add_input)
            before = Given(*inputs)
            mode.begin_run(turned, answers, far)
            with mode.site.watch(), mode, FunctionWatch(mode.read):
                returned = functional_call(model, stand_ins, *inputs, tie_weights=False)
                returned = reduced(model, returned, choices.outputs)
            if mode.escapes.refusal is not None:
                raise mode.escapes.refusal
            # on another way through the model there may be fewer outputs
            counts = counted(returned, choices.outputs, before, strict=not outputs)
            outputs.extend(mode.outputs(counts))

        run(given)
        if mode.result.looked_at_data:
            _run_otherwise(mode, given, run)
        mode.pin_outputs(outputs)
    return mode.finish()


def _run_otherwise(mode: Propagator, given: Any, run: Callable[..., None]) -> None:
    """Take other ways through a model that looks at data; doubt what none of them reads."""
    idle, once = 0, mode.work
    looks, ways, few = mode.looks, mode.looks.other_ways(), mode.looks.may_follow()
    for seed in range(1, 1 + _MORE_RUNS):
        known = mode.reached()
        run(redrawn(given, seed))
        idle = idle + 1 if mode.reached() == known else 0
        if idle == _IDLE_RUNS:
            break
    for marked in with_third_marks(given) if mode.unread() else ():
        mode.attempt(partial(run, marked))
    if few or mode.unread():
        looks.follow(lambda way: mode.attempt(partial(run, given, answers=way)), ways)
    for seed, factor in enumerate((_TWICE, *_MORE_ROWS), start=1 + _MORE_RUNS):
        larger = with_more_rows(given, factor) if once * factor <= _WORK_AT_MOST else None
        if larger is not None and mode.unread() and (factor == _TWICE or looks.lines):
            mode.attempt(partial(run, spread(redrawn(larger, seed))))
            looks.compare_rows()
    if looks.lines:
        for source in [source for source, yes_or_no in looks.sources.items() if yes_or_no]:
            mode.attempt(partial(run, given, source))
        for source, far in product(list(looks.numbers)[:_NUMBERS_AT_MOST], (-1, 1)):
            mode.attempt(partial(run, given, source, far=far))
    unread = mode.unread()
    if unread:
        looks.pin_doubtful(mode.result.ledger)
    mode.result.notes.update(dict.fromkeys(looks.notes(unread)))


def _stand_ins(held: Sequence[Held], mode: Propagator) -> dict[str, Tensor]:
    """Tracked tensors for parameters, clones for buffers; tied tensors share one stand-in."""
    mode.result.held = list(held)
    stand_ins: dict[str, Tensor] = {}
    for item in held:
        add = mode.add_state if item.role is Role.STATE else mode.add_buffer
        stand_in = add(item)
        stand_ins.update(dict.fromkeys(item.names, stand_in))
    return stand_ins


@sees_flex_attention
class Propagator(TorchDispatchMode):
    """Applies the rule of each operator as it is called."""

    def __init__(self, site: CallSite, kind: _Tensors) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Propagation()
        self.site = site
        self.real = kind is _Tensors.REAL
        self.all_meta = kind is _Tensors.ALL_META
        self.looks = Looks()
        self.states: dict[str, tuple[int, ...]] = {}
        self.work = 0
        self._half_read: set[str] = set()
        self._returned: set[str] = set()
        self.escapes = Escapes(self.result.ledger, self.result.notes, site, self.real)
        self.memory = self.escapes.memory
        self._without_data: nn.Module | None = None
        self._calls: list[tuple[int, list[_Entry], list[_Entry]]] = []
        self._buffers: dict[object, tuple[Held, Tensor]] = {}

    def begin_run(self, turned: str | None, answers: Sequence[bool], far: int) -> None:
        """Start another run, in which looks at one line, or the first ones, get other answers."""
        self.escapes.begin_run()
        self.looks.begin_run(turned, answers, far)

    def reached(self) -> set[object]:
        """What was read of the state, and by which operators and lines."""
        calls = {(origin.operator, origin.source) for origin in self.result.ledger.origins}
        return self.result.ledger.places() | calls

    def unread(self) -> list[str]:
        """State of which not all was read, or only in a run that came to no end."""
        found = {*unread_state(self.result.ledger, self.states), *self._half_read}
        return [name for name in self.states if name in found - self._returned]

    def attempt(self, run: Callable[[], None]) -> bool:
        """Make a run that may raise, and see whether it ends in a way that does not depend on its
        data. State that is read only by runs which do not may meet more than was seen.
        """
        before = self.unread()
        error = attempt(run)
        if error is None:
            return True
        half_read = set(before) - set(self.unread())
        self._half_read |= half_read
        if half_read:
            self.looks.lose()
        return not half_read and raised_by_python(error)

    # State and values -------------------------------------------------------------------------

    def add_state(self, item: Held) -> Tensor:
        """A tracked stand-in for a state tensor."""
        tensor = item.tensor.detach()
        stand_in = tensor.clone() if self.real else _to_meta(tensor)
        self.result.shapes[item.name] = self.states[item.name] = tuple(tensor.shape)
        self._follow(item, stand_in)
        return stand_in

    def _follow(self, item: Held, stand_in: Tensor) -> None:
        """Take a tensor for state, from now on."""
        shape = tuple(stand_in.shape)
        value = Value(shape, elements_field(item.name, shape))
        if item.overlaps:
            ledger = self.result.ledger
            ledger.origins.append(Origin("shared memory", item.name))
            pinned = pinned_value(shape, f"shares memory with {item.overlaps}, in another view")
            value = Value(shape, join(ledger, [*pinned.fields, *value.fields]))
        track = Track(value, item.name, is_state=True)
        if item.role is Role.STATE and stand_in.is_floating_point():
            track.spread = known(of_state(shape, len(self.states)))
        self.memory.set(stand_in, track)
        self.memory.alias(item.tensor, track)  # for models that hold it elsewhere as well

    def add_buffer(self, item: Held) -> Tensor:
        """A constant, unless what reads it shows that it is state."""
        stand_in = item.tensor.detach().clone()
        self.result.shapes[item.name] = tuple(stand_in.shape)
        for tensor in (stand_in, item.tensor):
            self._buffers[place_of(tensor)] = (item, stand_in)
        self.result.relied.begin(item, stand_in)
        self.memory.add_constants([stand_in])
        return stand_in

    def add_input(self, tensor: Tensor) -> Tensor:
        """A tracked stand-in for a model input, all of whose axes are pinned."""
        stand_in = tensor.detach().clone() if self.real else _to_meta(tensor.detach())
        track = Track(pinned_value(tensor.shape, "model input"), name=INPUT)
        track.spread = known(of_input(tensor))
        self.memory.set(stand_in, track)
        return stand_in

    def add_constants(self, model: nn.Module) -> None:
        """Tensors that exist before the run, where others have to be told from them."""
        if self.real:
            self.memory.add_constants(o for o in gc.get_objects() if issubclass(type(o), Tensor))
            self.memory.add_constants(tensors_of(model))  # with some that Python has not seen yet
        elif any(parameter.is_meta for parameter in model.parameters()):
            self._without_data = model

    def lookup(self, tensor: Tensor) -> Value:
        """What is known of a tensor; of a constant, where it is not uniform."""
        found = self.memory.find(tensor)
        if found is None and self._recognise(tensor):
            found = self.memory.find(tensor)
        if found is not None:
            return refresh(found, self.result.ledger)
        value = self.memory.constant_value(tensor)
        value = with_square_units(self.result.ledger, tensor, value)
        self.result.relied.on_pattern(tensor, value, self.result.ledger.origin)
        return value

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The tensor itself, if it is a constant whose values are known."""
        if self.memory.find(tensor) is not None or tensor.is_meta or self._recognise(tensor):
            return None
        if self.escapes.happened and self.memory.is_exposed(tensor):
            return None
        self.result.relied.on_values(tensor)
        return tensor

    def running_statistics(self, tensor: Tensor) -> Value:
        """The value of a tensor that a normalisation reads: a buffer becomes state."""
        item = self._buffer(tensor)
        if item is not None and item.persistent and self.memory.find(tensor) is None:
            self._follow(item, self._buffers[place_of(tensor)][1])
        return self.lookup(tensor)

    def _recognise(self, tensor: Tensor) -> bool:
        """Treat a buffer as state if it may be, since something reads it; returns whether it is."""
        item = self._buffer(tensor)
        if item is None or item.role is not Role.CANDIDATE:
            return False
        if self.memory.find(tensor) is None:
            self._follow(item, self._buffers[place_of(tensor)][1])
            self.result.recognised.setdefault(item.name, item)
        return True

    def _recognise_any(self, tensors: Sequence[Tensor]) -> bool:
        recognised = [self._recognise(tensor) for tensor in tensors]  # each is to be followed
        return any(recognised)

    def _buffer(self, tensor: Tensor) -> Held | None:
        """The buffer that a tensor is, as the model holds it or as its stand-in."""
        found = self._buffers.get(place_of(tensor)) if self._buffers else None
        return None if found is None else found[0]

    # Dispatch ---------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in SHAPED_LIKE and not self.all_meta:
            result = func(_on_cpu(args[0]), *args[1:], **self._constant_options(options))
            self.memory.add_constants([result])
            return result
        if any(has_own_operators(kind) for kind in types):
            return NotImplemented  # such a subclass runs its operators first, and they are seen
        tensors = tensors_in((args, options))
        tracked = [self._is_tracked(func, tensor) for tensor in tensors]  # all have to be known
        if not any(tracked) and not self._recognise_any(tensors):
            if not (tensors and self.escapes.may_be_in(args, options)):
                return self._untracked(func, args, options)
            for tensor in tensors:
                self.memory.begin(tensor)
        if func is torch.ops.aten.equal.default and args[0].shape == args[1].shape:
            with self:  # it is made of these, and they have rules
                return bool((args[0] == args[1]).all())
        if func not in RULES:
            with self:
                decomposed = func.decompose(*args, **options)
            if decomposed is not NotImplemented:
                return decomposed
        with torch._C._DisableTorchDispatch():
            found = self._tracked(func, args, options)
            return self._look(found) if func in LOOKING else found

    def _look(self, found: Any) -> Any:
        """The model learns something about the data, and may do something else with other data."""
        if self.site.refuses():
            return found
        self.result.looked_at_data = True
        source = self.result.ledger.origins[-1].source
        return self.looks.look(source, found, self._alive())

    def _alive(self) -> Iterator[Value]:
        """What is held by something and is not a parameter; views are parts of it."""
        for track in self.memory.alive():
            if track.base is None and not track.is_state:
                pending = track.pieces is not None
                yield refresh(track, self.result.ledger) if pending else track.value

    def _is_tracked(self, func: Any, tensor: Tensor) -> bool:
        """Whether something is known of an operand; else it is a constant, or refused."""
        if self.memory.find(tensor) is not None:
            return True
        if not self.real and not tensor.is_meta:  # nothing with data depends on activations
            return False
        if self._without_data is not None and not self.memory.is_constant(tensor):
            self.memory.add_constants(tensors_of(self._without_data))
            self._without_data = None
        if self.memory.is_constant(tensor):
            return False
        made_by_torch = func is torch.ops.aten.lift_fresh.default or tensor.numel() <= 1
        if made_by_torch and not tensor.is_meta and not self.escapes.happened:
            self.memory.add_constants([tensor])
            return False
        self.escapes.arrived(tensor)
        return True

    def read(self, tensor: Tensor, how: str) -> None:
        """Python reads data of a tensor without an operator."""
        with torch._C._DisableTorchDispatch():
            self.lookup(tensor)
            self.result.relied.on_values(tensor)
            tracked = self.memory.find(tensor) is not None
            self.escapes.read(tensor, how)
            if tracked and self.real:
                self._look(None)

    def _constant_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Constants made inside `forward` on the model's device keep their data.

        Where everything has data, only torch itself makes tensors without, to learn of shapes.
        """
        device = options.get("device")
        if not self.real and device is not None and torch.device(device).type == "meta":
            return {**options, "device": torch.device("cpu")}
        return options

    def _untracked(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """An operator on constants is simply run."""
        if self.all_meta:
            return self._untracked_on_meta(func, args, options)
        operands = tensors_in((args, options))
        relied = self.result.relied
        if func in LOOKING:
            for tensor in operands:
                relied.on_values(tensor)
        result = func(*args, **self._constant_options(options))
        made = tensors_in(result)
        relied.hand_on(func, operands, made)
        if self.escapes.may_be_in(args, options) and func not in UNIFORM:
            self.escapes.made(made)
            return result
        self.memory.add_constants(made if self.real else [item for item in made if item.is_meta])
        argument = viewed_by(func)
        bound = bind(func, args, options) if argument or writes(func) else {}
        for tensor in touched_by(func, bound):
            self.memory.note_write(tensor)
            relied.note_write(tensor)
        if argument:
            for index, tensor in enumerate(made):
                replay = replay_of(func, bound, argument, index)
                self.memory.mark_view(tensor, bound[argument], replay)
        return result

    def _untracked_on_meta(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A constant without data is pinned, unless it holds one number throughout."""
        result = func(*args, **options)
        for tensor in tensors_in(result):
            if tensor.is_meta and self.memory.find(tensor) is None:
                shape = tuple(tensor.shape)
                uniform = func in SHAPED_LIKE or func in UNIFORM
                self.memory.set(
                    tensor, Track(Value(shape) if uniform else pinned_value(shape, "constant"))
                )
        return result

    def _tracked(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        result = self.result
        name = name_of(func)
        result.operators[name] = result.operators.get(name, 0) + 1
        result.ledger.origins.append(self.site.describe(name, func))
        bound = bind(func, args, options)
        writes = written_by(func, bound)
        also = [t for t in touched_by(func, bound) if not any(t is item for item in writes)]
        for tensor in writes:
            if self.memory.find(tensor) is None:
                self.lookup(tensor)
            self.memory.begin(tensor)  # while a constant still holds what it held before
        if func in RESHAPING:
            return self._reshape(func, bound)
        strides = [strides_of(tensor) for tensor in tensors_in(list(bound.values()))]
        computed = self._execute(func, args, options)
        outputs = writes or tensors_in(computed)
        if any(tensor.is_nested for tensor in outputs):
            raise TraceError(
                f"{result.ledger.origins[-1]} makes a nested tensor of the strided layout, which "
                "has no sizes that could be analysed. Make it with layout=torch.jagged, or pad."
            )
        call = Call(
            result.ledger,
            func,
            bound,
            outputs,
            self.lookup,
            self.constant,
            self.running_statistics,
            strides,
            self._names,
            self._apart,
        )
        operands = [(tensor, self.memory.find(tensor)) for tensor in call.tensors()]
        if func in LAZY:
            inputs = [self._named(*operand) for operand in operands]
            values = [Value(tuple(tensor.shape)) for tensor in outputs]
            self._attach(func, bound, outputs, values)
            self._record(inputs, outputs, values)
            return computed
        self._refresh(func, operands, writes if func in OVERWRITING else [])
        rule = RULES.get(func)
        if self.real and outputs and all(tensor.is_meta for tensor in outputs):
            rule = uniform  # torch wants to know a shape; there are no data that could be seen
        if rule is None and func not in LOOKING and func not in INDIFFERENT:
            rule = pin_everything("unknown operator")
            result.unknown.setdefault(name)
        else:
            also = []
        values = [] if rule is None else self._apply(rule, call)
        shape = tuple(outputs[0].shape) if outputs else ()
        spreads = [_spread_of(*operand) for operand in operands]
        spread = of_result(func, bound, spreads, shape, rule is pointwise)
        inputs = [self._named(*operand) for operand in operands]
        for tensor in also:
            self._write(tensor, pinned_value(tensor.shape, "unknown operator"))
        if writes:
            for tensor, value in zip(writes, values, strict=True):
                known = pinned_value(value.shape, "constant") if value.constant else value
                self._write(tensor, known)
        else:
            self._attach(func, bound, outputs, values)
        if outputs and (track := self.memory.find(outputs[0])) is not None:
            track.spread = spread
        self._record(inputs, outputs, values)
        return writes[0] if writes and isinstance(computed, Tensor) else computed

    def _refresh(self, func: Any, operands: Sequence[_Operand], written: Sequence[Tensor]) -> None:
        """Operands are read, also by a rule that does not look at them; names are asked for."""
        for tensor, track in operands:
            if track is None or any(tensor is item for item in written):
                continue
            if func not in LOOKING_UP or not may_be_named(track):
                refresh(track, self.result.ledger)

    def _names(self, tensor: Tensor) -> Value | None:
        track = self.memory.find(tensor)
        return None if track is None else named(track, self.result.ledger)

    def _apart(self, tensor: Tensor, axis: int, largest: bool) -> bool:
        along = _spread_of(tensor, self.memory.find(tensor)).spread().axes[axis]
        return along is Along.APART or (largest and along is Along.TOP)

    def _apply(self, rule: Rule, call: Call) -> list[Value]:
        try:
            return list(rule(call))
        except Exception as error:
            if out_of_memory(error):
                raise
            origin = self.result.ledger.origins[-1]
            raise TraceError(
                f"the rule of {origin} failed on shapes "
                f"{[tuple(tensor.shape) for tensor in call.tensors()]}: "
                f"{type(error).__name__}: {error}. This is a bug of fxrebasin; please report it."
            ) from error

    def _execute(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.real:
            return func(*args, **options)
        try:
            return on_meta(func, args, options)
        except Exception as error:
            self.escapes.refusal = self.escapes.refusal or error  # also if the model catches it
            raise

    def _reshape(self, func: Any, bound: Mapping[str, Any]) -> Tensor:
        """A tensor becomes a view of what it was; nothing is written."""
        tensor: Tensor = bound["self"]
        base = self.memory.begin(tensor)
        replay = replay_of(RESHAPING[func], bound, "self", 0)
        func(**bound)
        track = Track(Value(tuple(tensor.shape)), base.name, base, replay, seen=-1)
        self.memory.set(tensor, track)
        return tensor

    def _attach(
        self,
        func: Any,
        bound: Mapping[str, Any],
        outputs: Sequence[Tensor],
        values: Sequence[Value],
    ) -> None:
        argument = viewed_by(func)
        base = self.memory.find(bound[argument]) if argument else None
        for index, (tensor, value) in enumerate(zip(outputs, values, strict=True)):
            if value.constant and not tensor.is_meta:
                self.memory.add_constants([tensor])
                continue
            track = Track(value)
            if base is not None:
                track.base = base
                track.seen = -1 if func in LAZY else base.root.version
                track.replay = replay_of(func, bound, argument, index)
            self.memory.set(tensor, track)

    def _write(self, tensor: Tensor, value: Value) -> None:
        track = self.memory.begin(tensor)
        steps = zip(tensor.shape, strides_of(tensor), strict=False)
        if any(
            size > 1 and not step for size, step in steps
        ):  # several values for one place: torch leaves open which of them stays
            pinned = pinned_value(value.shape, "written to one place several times").fields
            value = Value(value.shape, join(self.result.ledger, [*value.fields, *pinned]))
        if tuple(value.shape) == tuple(track.value.shape):
            write(track, value, self.result.ledger)
        else:
            self._resized(tensor, track, value)
        self.memory.moved(tensor, track)
        self.escapes.written(tensor)

    def _resized(self, tensor: Tensor, track: Track, value: Value) -> None:
        """A tensor got another size when it was written to: what looked at its memory is lost."""
        ledger, reason = self.result.ledger, "memory of a tensor that was resized"
        others = [item for item in self.memory.sharing(tensor) if item is not track]
        for other in others:
            known = refresh(other, ledger)
            pinned = pinned_value(known.shape, reason).fields
            other.stand_alone(Value(known.shape, join(ledger, [*known.fields, *pinned])))
        if others:
            pinned = pinned_value(value.shape, reason).fields
            value = Value(value.shape, join(ledger, [*value.fields, *pinned]))
        track.stand_alone(value)

    def _named(self, tensor: Tensor, known: Track | None = None) -> _Entry:
        track = known or self.memory.find(tensor)
        if track is None:
            item = self._buffer(tensor)
            if item is None:
                return CONSTANT, self.memory.constant_value(tensor)
            return item.name, Value(tuple(tensor.shape))
        return track.name, _shown(track)

    def _record(
        self,
        inputs: Sequence[_Entry],
        outputs: Sequence[Tensor],
        values: Sequence[Value],
    ) -> None:
        origin = self.result.ledger.origin
        node = self.result.ledger.origins[origin].node
        named: list[_Entry] = []
        for index, (tensor, value) in enumerate(zip(outputs, values, strict=True)):
            name = node if index == 0 else f"{node}[{index}]"
            track = self.memory.find(tensor)
            if track is not None:
                track.name = name
            named.append((name, value if track is None else _shown(track)))
        self._calls.append((origin, list(inputs), named))
        self.looks.made(item for _, item in named)
        self.work += _WORK_OF_AN_OPERATOR + sum(math.prod(value.shape) for value in values)

    def finish(self) -> Propagation:
        """The result, once nothing more is going to be read."""
        self.result.notes.update(self.result.ledger.notes)
        for origin, inputs, outputs in self._calls:
            self.result.records.append(Record(origin, _settled(inputs), _settled(outputs)))
        return self.result

    def outputs(self, counts: Mapping[str, Tensor]) -> list[ModelOutput]:
        """What is known of outputs, but for constants."""
        found = [
            ModelOutput(name, self.lookup(tensor), self._named(tensor), track.base)
            for name, tensor in counts.items()
            if (track := self.memory.find(tensor)) is not None
        ]
        self._returned |= {
            item.state
            for output in found
            for item in output.value.fields
            if isinstance(item, Elements)
            and item.view.numel() == math.prod(self.states.get(item.state, ()))
        }
        return found

    def pin_outputs(self, outputs: Sequence[ModelOutput]) -> None:
        """The model's outputs are seen by the user: none of their axes may move.

        Those that the model goes on with come last, so that what is found without them is known.
        """
        passing = self._passing(outputs)
        for item in outputs:
            if item not in passing:
                self._pin_output(item)
        if passing:
            self.result.passing = Passing(tuple(passing), self.result.fork())
        for item in passing:
            self._pin_output(item)

    def _passing(self, outputs: Sequence[ModelOutput]) -> list[ModelOutput]:
        """The outputs that operators read again, but for the one that is made last."""
        if not outputs:
            return []
        made = {name: at for at, (_, _, makes) in enumerate(self._calls) for name, _ in makes}
        read = {name for _, inputs, _ in self._calls for name, _ in inputs}
        _, last = max((made.get(item.made[0], -1), item.name) for item in outputs)
        return [item for item in outputs if item.names() & read and item.name != last]

    def _pin_output(self, output: ModelOutput) -> None:
        pinned = output.pin(self.result.ledger)
        self._calls.append((self.result.ledger.origin, [output.made], [(output.name, pinned)]))


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """An output, by its name for the user and by that of the operator that made it."""

    name: str
    value: Value
    made: _Entry
    base: Track | None

    def pin(self, ledger: Ledger) -> Value:
        """None of its axes may move; returns the value that says so."""
        ledger.origins.append(Origin("output", self.name, is_output=True))
        pinned = pinned_value(self.value.shape, "model output")
        join(ledger, [*pinned.fields, *self.value.fields])
        return pinned

    def names(self) -> set[str]:
        """Under which names operators read it, or what it is a view of."""
        found = {self.made[0]}
        track = self.base
        while track is not None:
            found.add(track.name)
            track = track.base
        return found


_Entry: TypeAlias = tuple[str, "Value | Track"]
"""A tensor in a record: its name, and its value, or its track while that is not looked up yet."""


_Operand: TypeAlias = tuple[Tensor, "Track | None"]
"""An operand, and what is known of it; nothing of a constant."""


def _spread_of(tensor: Tensor, track: Track | None) -> Later:
    return known(of_constant(tensor)) if track is None else spread_of_track(track)


def _shown(track: Track) -> Value | Track:
    return track.value if track.seen >= 0 else track


def _settled(entries: Sequence[_Entry]) -> tuple[tuple[str, Value], ...]:
    return tuple((name, item.value if isinstance(item, Track) else item) for name, item in entries)


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that a constant can be made like."""
    if tensor.device.type != "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
