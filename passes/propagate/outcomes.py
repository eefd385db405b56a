"""What an operator leaves behind: new tensors, and others that it wrote to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.joining import pinned_too
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.propagate.escapes import Escapes
from fxrebasin.passes.propagate.tracks import (
    LAZY,
    RESHAPING,
    Track,
    as_read,
    refresh,
    replay_of,
    write_through,
)
from fxrebasin.passes.rules.call import Call
from fxrebasin.running.operators import strides_of, viewed_by


class Outcomes:
    """Notes what tensors hold after an operator was called."""

    def __init__(self, ledger: Ledger, escapes: Escapes) -> None:
        self._ledger, self._escapes, self._memory = ledger, escapes, escapes.memory

    def attach(self, call: Call, values: Sequence[Value]) -> None:
        """New tensors hold what a rule says, and views remember what they are views of.

        Args:
            call: of the operator that made them.
            values: theirs.
        """
        argument = viewed_by(call.op)
        base = self._memory.find(call.args[argument]) if argument else None
        for index, (tensor, value) in enumerate(zip(call.outputs, values, strict=True)):
            if value.constant and not tensor.is_meta:
                self._memory.add_constants([tensor])
                continue
            track = Track(value)
            if base is not None:
                track.base = base
                track.seen = -1 if call.op in LAZY else base.root.version
                track.replay = replay_of(call.op, call.args, argument, index)
            self._memory.set(tensor, track)

    def note_write(self, tensor: Tensor, value: Value) -> None:
        """A tensor was written to, and holds a value now."""
        track = self._memory.begin(tensor)
        steps = zip(tensor.shape, strides_of(tensor), strict=False)
        if any(size > 1 and not step for size, step in steps):
            # several values for one place: torch leaves open which of them stays
            value = pinned_too(self._ledger, as_read(value), "written to one place several times")
        if tuple(value.shape) == tuple(track.value.shape):
            write_through(track, value, self._ledger)
        else:
            self._resized(tensor, track, value)
        self._memory.moved(tensor, track)
        self._escapes.note_write(tensor)

    def _resized(self, tensor: Tensor, track: Track, value: Value) -> None:
        """A tensor got another size when it was written to: what looked at its memory is lost."""
        ledger, reason = self._ledger, "memory of a tensor that was resized"
        value = as_read(value)
        others = [item for item in self._memory.sharing(tensor) if item is not track]
        for other in others:
            other.stand_alone(pinned_too(ledger, refresh(other, ledger), reason))
        track.stand_alone(pinned_too(ledger, value, reason) if others else value)

    def reshape(self, func: Any, bound: Mapping[str, Any]) -> Tensor:
        """A tensor becomes a view of what it was; nothing is written."""
        tensor: Tensor = bound["self"]
        base = self._memory.begin(tensor)
        replay = replay_of(RESHAPING[func], bound, "self", 0)
        func(**bound)
        track = Track(Value(tuple(tensor.shape)), base.name, base, replay, seen=-1)
        self._memory.set(tensor, track)
        return tensor
