"""What is known of a tensor; views and writes through views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.labels import NONE, Field, Labels, Value
from fxrebasin.passes.ledger import Ledger, free_labels
from fxrebasin.passes.rules.concatenation import aligned
from fxrebasin.passes.rules.movement import as_list, reshape_value, view_fields


@dataclass(eq=False)
class Track:
    """What is known of one tensor.

    A view remembers its base and how it was made, so that a write through either is seen by both.
    `version` counts the writes to a base that its views have to catch up with.
    """

    value: Value
    state: str = ""
    name: str = ""
    base: Track | None = None
    replay: Replay | None = None
    version: int = 0
    seen: int = 0


@dataclass(frozen=True, eq=False)
class Replay:
    """A view operator that can be run again on other tensors of the same shape."""

    op: OpOverload
    args: Mapping[str, Any]
    argument: str
    output: int

    def __call__(self, tensor: Tensor) -> Tensor:
        """Make the view of another tensor."""
        rest = {name: item for name, item in self.args.items() if name != self.argument}
        return as_list(self.op(tensor, **rest))[self.output]

    def fields(self, ledger: Ledger, value: Value, shape: tuple[int, ...]) -> tuple[Field, ...]:
        """The view's fields, from those of its base."""
        if self.op._schema.name in ("aten::view", "aten::_unsafe_view", "aten::reshape"):
            return reshape_value(ledger, value, shape).fields
        return view_fields(ledger, value, self, 1)[0]


def refresh(track: Track, ledger: Ledger) -> Value:
    """The current value of a tensor: a view of a base that was written to is made anew."""
    if track.value.when_read is not None:
        track.value = track.value.when_read()
    if track.base is not None and track.replay is not None:
        base = refresh(track.base, ledger)
        if track.seen != track.base.version:
            fields = track.replay.fields(ledger, base, track.value.shape)
            track.value = Value(track.value.shape, fields)
            track.seen = track.base.version
            track.version += 1
            track.state = ""
    return track.value


def write(track: Track, value: Value, ledger: Ledger, overwritten: bool) -> None:
    """A tensor takes on new content; so do its base and all other views of that.

    With `overwritten`, what was there before was not read.
    """
    track.value = value
    track.state = ""
    track.version += 1
    if track.base is None or track.replay is None:
        return
    write(track.base, _scattered(track, ledger, overwritten), ledger, overwritten)
    track.seen = track.base.version


def _scattered(track: Track, ledger: Ledger, overwritten: bool) -> Value:
    """The base of a view after the view was written to.

    The base's fields come to tell apart the part that was written and the part that was not, in
    the manner of a concatenation.
    """
    if track.base is None or track.replay is None:
        return track.value
    base = track.base.value
    places = track.replay(torch.arange(_count(base.shape)).view(base.shape)).reshape(-1)
    if places.numel() == _count(base.shape):
        fields = [
            _unviewed(item, track.value, base.shape, places) for item in _flat(track.value, ledger)
        ]
        return Value(base.shape, ledger.join([item for item in fields if item is not None]))
    inside = torch.zeros(_count(base.shape), dtype=torch.int64)
    inside[places] = 1
    segment = free_labels(_squeezed((-2 - inside).view(base.shape)))
    known = ledger.size
    before = _flat(base, ledger)
    if overwritten:
        _give_up_unread(ledger, before, base.shape, places, known)
    fields = []
    for old, new in aligned([before, _flat(track.value, ledger)]):
        full = torch.full((_count(base.shape),), NONE)
        if old is not None:
            full = old.values.expand(base.shape).reshape(-1).clone()
        full[places] = NONE
        if new is not None:
            full[places] = new.values.expand(track.value.shape).reshape(-1)
        fields.append(free_labels(_squeezed(full.view(base.shape))))
    found = [_marked(item) for item in [*fields, segment] if item is not None]
    return Value(base.shape, ledger.join(found))


def _give_up_unread(
    ledger: Ledger, fields: Sequence[Labels], shape: Sequence[int], places: Tensor, known: int
) -> None:
    """Elements that are overwritten before anything reads them belong to no class."""
    for item in fields:
        gone = item.values.expand(tuple(shape)).reshape(-1)[places].numpy()
        ledger.pin(gone[gone >= known], "overwritten before it is read")


def _marked(item: Labels) -> Labels:
    if bool((item.values < 0).all()):
        return Labels(item.values, item.axes, item.injective, True, "part of a tensor written to")
    return item


def _unviewed(item: Labels, value: Value, shape: Sequence[int], places: Tensor) -> Labels | None:
    full = torch.empty(_count(shape), dtype=torch.int64)
    full[places] = item.values.expand(value.shape).reshape(-1)
    found = free_labels(_squeezed(full.view(tuple(shape))), item)
    return found


def _flat(value: Value, ledger: Ledger) -> list[Labels]:
    found: list[Labels] = []
    for item in value.fields:
        found += [item] if isinstance(item, Labels) else ledger.separate(item)
    return found


def _squeezed(values: Tensor) -> Tensor:
    for axis in range(values.ndim):
        first = values.narrow(axis, 0, 1)
        if bool((values == first).all()):
            values = first
    return values


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
