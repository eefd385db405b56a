"""Sequences of several lengths, packed one time step after the other."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value, pinned_value
from fxrebasin.passes.fields.patterns import Pattern, pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule

_PACKED = pattern("!a !b ... -> !step ...")
_PADDED = pattern("!step ... -> !a !b ...")


@rule("_pack_padded_sequence")
def pack(call: Call) -> Sequence[Value]:
    """Batch and time, or time first, become steps; and sizes per time."""
    return _steps(call, _PACKED, call.value("input"), "lengths")


@rule("_pad_packed_sequence")
def pad_packed(call: Call) -> Sequence[Value]:
    """Steps become batch and time, or time first; and the lengths."""
    return _steps(call, _PADDED, call.value("data"), "batch_sizes")


def _steps(call: Call, found: Pattern, value: Value, sizes: str) -> list[Value]:
    """Steps, and their sizes, which are computed from sizes."""
    steps, other = call.follow(found, value, reason="step"), tuple(call.outputs[1].shape)
    if call.constant(call.args[sizes]) is not None:
        return [steps, Value(other, constant=True)]
    call.pin_axes(call.value(sizes), [0], "size")
    return [steps, pinned_value(other, f"step of {call.op}")]
