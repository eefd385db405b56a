"""The table of operator rules: ATen overload -> how its axes correspond.

A rule is a function from a `Call` to the values of the operator's tensor outputs. It is registered
for overloads by name, `"addmm"` standing for all overloads of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch._ops import OpOverload

from fxrebasin.passes.fields.fields import Value, pinned_value
from fxrebasin.passes.rules.call import Call

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
