"""The dispatch mode that sees ATen operators as a model calls them, and applies their rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.errors import TraceError
from fxrebasin.passes.fields.fields import Value, pinned_value
from fxrebasin.passes.propagate.call_site import CallSite
from fxrebasin.passes.propagate.escapes import FROM_PYTHON, Escapes
from fxrebasin.passes.propagate.known_tensors import KnownTensors, spread_of_operand
from fxrebasin.passes.propagate.outcomes import Outcomes
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.recorder import Recorder
from fxrebasin.passes.propagate.routing import Looks
from fxrebasin.passes.propagate.sameness import Sameness
from fxrebasin.passes.propagate.spread_rules import of_result
from fxrebasin.passes.propagate.tracks import (
    LAZY,
    RESHAPING,
    Track,
    may_be_named,
    may_be_sliced,
    refresh,
    replay_of,
    sliced,
)
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.drawing import RANDOM, draws
from fxrebasin.passes.rules.numbers import LOOKING_UP
from fxrebasin.passes.rules.pointwise import pointwise, uniform
from fxrebasin.passes.rules.registry import RULES, Rule, pin_everything
from fxrebasin.passes.rules.slices import FOLLOWING, follow_slices
from fxrebasin.running.flex import sees_flex_attention
from fxrebasin.running.messages import out_of_memory
from fxrebasin.running.on_meta import on_meta
from fxrebasin.running.operators import (
    CHOOSING,
    INDIFFERENT,
    LOOKING,
    OVERWRITING,
    SHAPED_LIKE,
    TRUTHS,
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
from fxrebasin.running.subclasses import has_own_operators


class RunOn(Enum):
    """What a model is run on.

    META: parameters and inputs have no data, constants have. REAL: everything has, for models that
    look at the data of activations. ALL_META: nothing has, for models without weights that make
    constants where their inputs are.
    """

    META = auto()
    REAL = auto()
    ALL_META = auto()


_NO_RULE = "unknown operator"
_UNKNOWN = pin_everything(_NO_RULE)

_Followed = TypeVar("_Followed")

_Operand: TypeAlias = tuple[Tensor, "Track | None"]
"""An operand, and what is known of it; nothing of a constant."""


@sees_flex_attention
class Propagator(TorchDispatchMode):
    """Applies the rule of each operator as it is called.

    Attributes:
        reached: operators that made numbers, each with the line that called it.
    """

    def __init__(self, site: CallSite, kind: RunOn) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Propagation()
        self.site = site
        self.real = kind is RunOn.REAL
        self.all_meta = kind is RunOn.ALL_META
        self.looks = Looks()
        self.reached: set[tuple[str, str]] = set()
        self.escapes = Escapes(self.result.ledger, self.result.notes, site, self.real)
        self.memory = self.escapes.memory
        self.tensors = KnownTensors(self.result, self.escapes, self.real)
        self.recorder = Recorder(self.result.ledger, self.tensors, self.looks)
        self._outcomes = Outcomes(self.result.ledger, self.escapes)
        self._sameness = Sameness(self.memory)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if self.looks.masks_turned and func in CHOOSING:
            with self:  # masks are made of others, and what makes them has a rule
                args = tuple(map(_turned, args)) if func not in TRUTHS else (args[0] == 0,)
        if func in SHAPED_LIKE and not self.all_meta:
            result = func(_on_cpu(args[0]), *args[1:], **self._constant_options(options))
            self.memory.add_constants([result])
            return result
        if any(has_own_operators(kind) for kind in types):
            return NotImplemented  # such a subclass runs its operators first, and they are seen
        tensors = tensors_in((args, options))
        # all of them have to be known
        tracked = [self.tensors.is_tracked(func, tensor) for tensor in tensors]
        if not any(tracked) and not self.tensors.recognise_any(tensors):
            unknown = draws(func) or self.escapes.may_be_in(args, options)
            if not (tensors and unknown):
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
            return self._look(found) if self._may_differ(func, args, found) else found

    def finish(self) -> Propagation:
        """The result, once nothing more is going to be read."""
        self.result.notes.update(self.result.ledger.notes)
        self.result.records += self.recorder.records()
        return self.result

    def _may_differ(self, func: Any, args: tuple[Any, ...], found: Any) -> bool:
        """Whether a model goes on with something else for other data, as far as is known by now.

        Where data have chosen rows it goes on with these; if they are none, some may be elsewhere.
        """
        if not self.real or torch.Tag.dynamic_output_shape not in func.tags:
            return func in LOOKING
        if func is torch.ops.aten.index.Tensor and not any(map(_is_mask, args[1])):
            return False
        self.result.looked_at_data = True
        some = any(tensor.numel() for tensor in tensors_in(found))
        self.looks.chose(self.result.ledger.origins[-1].source, some)
        return func in LOOKING or not some

    def _look(self, found: Any) -> Any:
        """The model learns something about the data, and may do something else with other data."""
        if self.site.refuses():
            return found
        self.result.looked_at_data = True
        source = self.result.ledger.origins[-1].source
        return self.looks.look(source, found, self.tensors.alive())

    def read(self, tensor: Tensor, how: str) -> None:
        """Python reads data of a tensor without an operator."""
        with torch._C._DisableTorchDispatch():
            self.tensors.lookup(tensor)
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
        if draws(func):
            self.memory.pin(made, f"{RANDOM} of {name_of(func)}")
            return result
        if self.escapes.may_be_in(args, options) and func not in UNIFORM:
            self.memory.pin(made, FROM_PYTHON)
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
        """An operator on tensors of which something is known."""
        name, ledger = name_of(func), self.result.ledger
        self.result.operators[name] = self.result.operators.get(name, 0) + 1
        ledger.origins.append(self.site.describe(name, func))
        bound = bind(func, args, options)
        written = written_by(func, bound)
        for tensor in written:
            if self.memory.find(tensor) is None:
                self.tensors.lookup(tensor)
            self.memory.begin(tensor)  # while a constant still holds what it held before
        if func in RESHAPING:
            return self._outcomes.reshape(func, bound)
        strides = [strides_of(tensor) for tensor in tensors_in(list(bound.values()))]
        computed = self._execute(func, args, options)
        outputs = written or tensors_in(computed)
        if any(tensor.is_nested for tensor in outputs):
            raise TraceError(
                f"{ledger.origins[-1]} makes a nested tensor of the strided layout, which "
                "has no sizes that could be analysed. Make it with layout=torch.jagged, or pad."
            )
        known = self.tensors
        of_tensors = known.lookup, known.constant, known.running_statistics
        of_numbers = known.names, known.are_apart, self._sameness.of
        call = Call(ledger, func, bound, outputs, *of_tensors, strides, *of_numbers)
        operands = [(tensor, self.memory.find(tensor)) for tensor in call.tensors()]
        if func in LAZY:
            self._make_views(call, operands)
            return computed
        if outputs and not any(tensor.numel() for tensor in outputs):
            self._make_nothing(call, written)
        else:
            self.reached.add((name, ledger.origins[-1].source))
            self._follow_rule(call, operands, written)
        return written[0] if written and isinstance(computed, Tensor) else computed

    def _make_views(self, call: Call, operands: Sequence[_Operand]) -> None:
        """Views are looked at when something reads them."""
        inputs = [self.recorder.entry(*operand) for operand in operands]
        values = [Value(tuple(tensor.shape)) for tensor in call.outputs]
        self._outcomes.attach(call, values)
        self.recorder.call(inputs, call.outputs, values)

    def _make_nothing(self, call: Call, written: Sequence[Tensor]) -> None:
        """No numbers are read where none are made: no data may have chosen an expert."""
        values = [Value(tuple(tensor.shape)) for tensor in call.outputs]
        for tensor, value in zip(written, values, strict=False):
            self._outcomes.note_write(tensor, value)
        if not written:
            self._outcomes.attach(call, values)

    def _follow_rule(
        self, call: Call, operands: Sequence[_Operand], written: Sequence[Tensor]
    ) -> None:
        """The rule of an operator says what its outputs hold."""
        func, outputs = call.op, call.outputs
        rule = self._rule(call)
        values = self._keeping_rows_apart(call, operands, written)
        if values is None:
            self._refresh(func, operands, written if func in OVERWRITING else [])
            values = [] if rule is None else self._apply(rule, call)
        shape = tuple(outputs[0].shape) if outputs else ()
        spreads = [spread_of_operand(*operand) for operand in operands]
        spread = of_result(func, call.args, spreads, shape, rule is pointwise)
        inputs = [self.recorder.entry(*operand) for operand in operands]
        if rule is _UNKNOWN:
            self._write_unknown(call, written)
        if written:
            for tensor, value in zip(written, values, strict=True):
                held = pinned_value(value.shape, "constant") if value.constant else value
                self._outcomes.note_write(tensor, held)
        else:
            self._outcomes.attach(call, values)
            self._sameness.note(call)
        if outputs and (track := self.memory.find(outputs[0])) is not None:
            track.spread = spread
        self.recorder.call(inputs, outputs, values)

    def _keeping_rows_apart(
        self, call: Call, operands: Sequence[_Operand], written: Sequence[Tensor]
    ) -> list[Value] | None:
        """The outputs of an operator on rows that were given slices of a stack, row by row."""
        if call.op not in FOLLOWING:
            return None
        found = {
            id(tensor): rows
            for tensor, track in operands
            if track is not None and may_be_sliced(track)
            if (rows := sliced(track, self.result.ledger)) is not None
        }
        if not found:
            return None
        values = self._guarded(call, lambda: follow_slices(call, found))
        return None if values is None else self._apply(lambda _: values, call)

    def _rule(self, call: Call) -> Rule | None:
        """What to go by; nothing where an operator makes no tensors, or none that depend on any."""
        if self.real and call.outputs and all(tensor.is_meta for tensor in call.outputs):
            return uniform  # torch wants to know a shape; there are no data that could be seen
        rule = RULES.get(call.op)
        if rule is None and call.op not in LOOKING and call.op not in INDIFFERENT:
            self.result.unknown.setdefault(name_of(call.op))
            return _UNKNOWN
        return rule

    def _write_unknown(self, call: Call, written: Sequence[Tensor]) -> None:
        """What an unknown operator may have written to, besides what it says, is pinned."""
        for tensor in touched_by(call.op, call.args):
            if not any(tensor is item for item in written):
                self._outcomes.note_write(tensor, pinned_value(tensor.shape, _NO_RULE))

    def _refresh(self, func: Any, operands: Sequence[_Operand], written: Sequence[Tensor]) -> None:
        """Operands are read, also by a rule that does not look at them; names are asked for."""
        for tensor, track in operands:
            if track is None or any(tensor is item for item in written):
                continue
            if func not in LOOKING_UP or not may_be_named(track):
                refresh(track, self.result.ledger)

    def _apply(self, rule: Rule, call: Call) -> list[Value]:
        return self._guarded(call, lambda: list(rule(call)))

    def _guarded(self, call: Call, follow: Callable[[], _Followed]) -> _Followed:
        """What a rule gives back; an error of its own says that it is one of ours."""
        try:
            return follow()
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


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _turned(argument: Any) -> Any:
    """A mask of the rows that it leaves out; the same for those in lists, and all else as it is."""
    if isinstance(argument, list | tuple):
        return [_turned(item) for item in argument]
    return argument.logical_not() if _is_mask(argument) else argument


def _on_cpu(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that a constant can be made like."""
    if tensor.device.type != "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
