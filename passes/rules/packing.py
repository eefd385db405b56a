"""Sequences of several lengths, packed one time step after the other."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value, pinned_value, place, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.registry import Call, rule


@rule("_pack_padded_sequence")
def pack(call: Call) -> Sequence[Value]:
    """`[batch, time, *features]`, or time first, `-> [steps, *features]`; and sizes per time."""
    return _steps(call, call.value("input"), 2, 1, "lengths")


@rule("_pad_packed_sequence")
def pad_packed(call: Call) -> Sequence[Value]:
    """`[steps, *features] -> [batch, time, *features]`, or time first, and the lengths."""
    return _steps(call, call.value("data"), 1, 2, "batch_sizes")


def _steps(call: Call, value: Value, before: int, after: int, sizes: str) -> list[Value]:
    """Leading axes of steps become others; the features pass. The sizes are made of sizes."""
    ndim, shape = len(call.shape), call.shape
    kept = range(before, len(value.shape))
    passed = call.ledger.reduce(call.pin_axes(value, range(before), "step"), kept)
    fields = [place(pick_axes(item, kept), range(after, ndim), ndim) for item in passed]
    reason = f"step of {call.op}"
    fields += [
        positions(ndim, axis, shape[axis], reason) for axis in range(after) if shape[axis] > 1
    ]
    other = tuple(call.outputs[1].shape)
    if call.constant(call.args[sizes]) is not None:
        return [Value(shape, tuple(fields)), Value(other, constant=True)]
    call.pin_axes(call.value(sizes), [0], "size")
    return [Value(shape, tuple(fields)), pinned_value(other, reason)]
