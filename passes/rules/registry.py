"""The table of operator rules: ATen overload -> how its axes correspond.

A rule is a function from a `Call` to the values of the operator's tensor outputs. It is registered
for overloads by name, `"addmm"` standing for all overloads of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.passes.fields.fields import Field, Value, pinned_value, place
from fxrebasin.passes.fields.ledger import Ledger


@dataclass(frozen=True, eq=False)
class Call:
    """One operator call.

    Attributes:
        ledger: where constraints are recorded.
        op: the overload.
        args: all arguments by their schema name, defaults included.
        outputs: the tensor outputs, in order (of the right shapes; their data mean nothing).
        lookup: the value of a tensor argument.
        constant: the data of a tensor argument that depends on no parameter and no input, or None.
        state: the value of a buffer read as running statistics.
        strides: of the tensor arguments, in order, before the call.
        named: the value of a tensor argument whose numbers are names of units, or None. What is
            not read so has to be looked up.
        apart: whether numbers of a tensor argument along an axis are equal by accident only: all,
            or the largest.
    """

    ledger: Ledger
    op: OpOverload
    args: Mapping[str, Any]
    outputs: Sequence[Tensor]
    lookup: Callable[[Tensor], Value]
    constant: Callable[[Tensor], Tensor | None]
    state: Callable[[Tensor], Value]
    strides: Sequence[tuple[int, ...]]
    named: Callable[[Tensor], Value | None]
    apart: Callable[[Tensor, int, bool], bool]

    def value(self, name: str) -> Value:
        """The value of a tensor argument."""
        return self.lookup(self.args[name])

    def optional(self, name: str) -> Value | None:
        """The value of a tensor argument that may be left out."""
        tensor = self.args.get(name)
        return None if tensor is None else self.lookup(tensor)

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, those in lists included."""
        found: list[Tensor] = []
        for item in self.args.values():
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, (list, tuple)):
                found += [part for part in item if isinstance(part, Tensor)]
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)

    def join(self, fields: Iterable[Field], shape: Sequence[int] | None = None) -> Value:
        """Let fields meet in one tensor, by default the first output."""
        size = self.shape if shape is None else tuple(shape)
        return Value(size, self.ledger.join(fields))

    def broadcast(self, value: Value, ndim: int) -> list[Field]:
        """The fields of a value that is broadcast to `ndim` dimensions."""
        offset = ndim - len(value.shape)
        if offset == 0:
            return list(value.fields)
        target = range(offset, ndim)
        return [place(item, target, ndim) for item in value.fields]

    def pin_axes(self, value: Value, axes: Iterable[int], reason: str) -> Value:
        """The value after giving up all freedom along some of its axes."""
        pinned = pinned_value(value.shape, f"{reason} of {self.op}").fields
        wanted = {axis % max(len(value.shape), 1) for axis in axes}
        rigid = [item for item in pinned if set(item.axes) <= wanted]
        touched = {axis for item in value.fields for axis in item.axes} & wanted
        if not touched:
            return value
        met = [item for item in rigid if set(item.axes) <= touched]
        return Value(value.shape, self.ledger.join([*value.fields, *met]))


Rule: TypeAlias = Callable[[Call], Sequence[Value]]

RULES: dict[OpOverload, Rule] = {}
BLOCKED: dict[OpOverload, str] = {}


def overloads(name: str) -> list[OpOverload]:
    """The overloads a name stands for; none when this version of PyTorch does not have it.

    A name without an overload stands for those that make tensors of tensors. Those that write to
    an `out` argument are left out: that is an operand as well, of any shape and content.
    """
    namespace, _, rest = name.rpartition("::")
    packet_name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace or "aten"), packet_name, None)
    if packet is None:
        return []
    if overload:
        return [getattr(packet, overload)] if overload in packet.overloads() else []
    found = (getattr(packet, item) for item in packet.overloads())
    return [item for item in found if _on_tensors(item)]


def _on_tensors(overload: OpOverload) -> bool:
    schema = overload._schema
    return (
        any("Tensor" in str(argument.type) for argument in schema.arguments)
        and any("Tensor" in str(result.type) for result in schema.returns)
        and not any(argument.is_out for argument in schema.arguments)
        and overload._overloadname != "hacked_twin"  # of TorchScript; nothing calls it
    )


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen overloads."""

    def register(function: Rule) -> Rule:
        for name in names:
            for overload in overloads(name):
                RULES[overload] = function
        return function

    return register


def register_out_variants() -> None:
    """Give the overloads that write to `out` arguments the rules of those that make new tensors."""
    for overload, function in list(RULES.items()):
        if overload.namespace != "aten":
            continue
        packet = getattr(torch.ops.aten, overload._schema.name.removeprefix("aten::"))
        for name in packet.overloads():
            other = getattr(packet, name)
            if other not in RULES and without_out(other) == _arguments(overload):
                RULES[other] = _writing_to_out(overload, function)


def _arguments(overload: OpOverload) -> list[tuple[str, str]]:
    return [(item.name, str(item.type)) for item in overload._schema.arguments]


def without_out(overload: OpOverload) -> list[tuple[str, str]] | None:
    """Names and types of the arguments but for `out`; None if an overload returns no such argument.

    Args:
        overload: with or without `out` arguments.
    """
    out = {item.name for item in overload._schema.arguments if item.is_out}
    returned = out and overload._schema.returns
    return [item for item in _arguments(overload) if item[0] not in out] if returned else None


def _writing_to_out(overload: OpOverload, function: Rule) -> Rule:
    names = {name for name, _ in _arguments(overload)}

    def apply(call: Call) -> Sequence[Value]:
        args = {name: item for name, item in call.args.items() if name in names}
        return function(replace(call, op=overload, args=args))

    return apply


def block(reason: str, *names: str) -> None:
    """Register operators that pin all axes on purpose, and say why."""
    for name in names:
        for overload in overloads(name):
            BLOCKED[overload] = reason
            RULES[overload] = pin_everything(reason)


def pin_everything(reason: str) -> Rule:
    """The rule of an operator about whose axes nothing is known."""

    def apply(call: Call) -> Sequence[Value]:
        for tensor in call.tensors():
            value = call.lookup(tensor)
            call.pin_axes(value, range(len(value.shape)), reason)
        return [pinned_value(out.shape, f"{reason} of {call.op}") for out in call.outputs]

    return apply
