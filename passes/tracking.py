"""Tensor objects and what is known of them; views and writes through views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.labels import NONE, Field, Labels, Value, pinned_value
from fxrebasin.passes.ledger import Ledger, free_labels
from fxrebasin.passes.rules.concatenation import aligned
from fxrebasin.passes.rules.movement import as_list, reshape_value, view_fields

_ATTRIBUTE = "_fxrebasin_track"
_VIEW_OF = "_fxrebasin_view_of"
_CONSTANT = "_fxrebasin_constant"


@dataclass(eq=False)
class Track:
    """What is known of one tensor object.

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


def get_track(tensor: Tensor) -> Track | None:
    """What is known of a tensor; None for a constant."""
    found: Track | None = getattr(tensor, _ATTRIBUTE, None)
    if found is None:
        made: tuple[Tensor, Replay] | None = getattr(tensor, _VIEW_OF, None)
        base = None if made is None else get_track(made[0])
        if made is not None and base is not None:
            found = Track(Value(tuple(tensor.shape)), base=base, replay=made[1], seen=-1)
            set_track(tensor, found)
    return found


def begin_track(tensor: Tensor) -> Track:
    """Start to follow a constant that is going to be written to, and what it is a view of."""
    found = get_track(tensor)
    if found is None:
        made: tuple[Tensor, Replay] | None = getattr(tensor, _VIEW_OF, None)
        if made is None:
            found = Track(constant_value(tensor))
        else:
            base = begin_track(made[0])
            found = Track(constant_value(tensor), base=base, replay=made[1], seen=base.version)
        set_track(tensor, found)
    return found


def mark_view(tensor: Tensor, base: Tensor, replay: Replay) -> None:
    """Remember that one constant is a view of another."""
    if tensor is not base:
        setattr(tensor, _VIEW_OF, (base, replay))


def set_track(tensor: Tensor, track: Track) -> None:
    """Attach what is known to a tensor object."""
    setattr(tensor, _ATTRIBUTE, track)


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


def constant_value(tensor: Tensor) -> Value:
    """A constant pins the axes along which it is not uniform."""
    if tensor.numel() <= 1:
        return Value(tuple(tensor.shape))
    if tensor.is_meta:
        return pinned_value(tensor.shape, "constant")
    written = 0 if tensor.is_inference() else tensor._version
    known: tuple[int, Value] | None = getattr(tensor, _CONSTANT, None)
    if known is None or known[0] != written:
        known = (written, _looked_at(tensor))
        setattr(tensor, _CONSTANT, known)
    return known[1]


def _looked_at(tensor: Tensor) -> Value:
    varying = []
    for axis, size in enumerate(tensor.shape):
        if size > 1 and tensor.stride(axis) != 0:
            first = tensor.narrow(axis, 0, 1)
            if not bool(((tensor == first) | ((tensor != tensor) & (first != first))).all()):
                varying.append(axis)
    pinned = pinned_value(tensor.shape, "constant").fields
    return Value(tuple(tensor.shape), tuple(f for f in pinned if f.axes[0] in varying))
