"""What is known of a tensor; views and writes through views."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.passes.fields.fields import Labels, Sliced, Value, pinned_value
from fxrebasin.passes.fields.joining import pinned_too
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import view_fields
from fxrebasin.passes.fields.slices import deferred, reshape_slices, view_slices
from fxrebasin.passes.propagate.pieces import Pieces
from fxrebasin.passes.propagate.spreads import Later, known, of_view, unknown
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.movement import reshape, same, view
from fxrebasin.passes.rules.registry import RULES, overloads, pin_everything
from fxrebasin.passes.rules.slices import Ways, moved_slices
from fxrebasin.running.operators import viewed_by


@dataclass(eq=False)
class Track:
    """What is known of one tensor.

    A view remembers its base and how it was made, so that a write through either is seen by both;
    what it holds is looked up when something reads it. The base of all bases holds the `pieces`
    that views of it were given. `version` counts its writes, and `seen` those that a view has
    caught up with. `spread` is how the numbers differ, for tensors that are not views. `numbers` is
    a version, and what names the numbers that the tensor held then.
    """

    value: Value
    name: str = ""
    base: Track | None = None
    replay: Replay | None = None
    version: int = 0
    seen: int = 0
    pieces: Pieces | None = None
    spread: Later | None = None
    numbers: tuple[int, Hashable] | None = None
    is_state: bool = False

    @property
    def root(self) -> Track:
        """What this is a view of, directly or through others."""
        return self if self.base is None else self.base.root

    def stand_alone(self, value: Value) -> None:
        """Forget what this is a view of, and what was written into it; it holds a value now."""
        self.value, self.is_state = value, False
        self.base = self.replay = self.pieces = self.spread = self.numbers = None
        self.seen = self.version


@dataclass(frozen=True, eq=False)
class Replay:
    """A view operator that can be run again on other tensors of the same shape.

    `form` is a meta tensor of the size, strides and type that its base had.
    """

    op: OpOverload
    args: Mapping[str, Any]
    argument: str
    form: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        """Make the view of another tensor."""
        found: Tensor = self.op(**{**self.args, self.argument: tensor})
        return found

    def value(self, ledger: Ledger, base: Value, shape: tuple[int, ...]) -> Value:
        """The view's value, from that of its base."""
        rule = RULES.get(self.op, pin_everything("unknown operator"))
        if rule is view:
            return Value(shape, view_fields(ledger, base, self, 1)[0])
        out = [torch.empty(shape, device="meta")]
        strides = [self.form.stride()]

        def looked_up(_: Tensor) -> Value:
            return base

        args = (looked_up, _none, looked_up, strides, _none, _never, _none)
        return rule(Call(ledger, self.op, self.args, out, *args))[0]


def replay_of(op: OpOverload, args: Mapping[str, Any], argument: str, output: int) -> Replay:
    """How one output of a view operator was made, by an operator with a single output."""
    base: Tensor = args[argument]
    form = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
    if op in _UNBINDING:
        chosen = {"dim": args["dim"], "index": output}
        return Replay(torch.ops.aten.select.int, chosen, argument, form)
    if op not in _SPLITTING:
        return Replay(op, args, argument, form)
    dim, sizes = args["dim"], args[_SPLITTING[op]]
    if op in _CHUNKING:
        sizes = max(-(-base.shape[dim] // sizes), 1)
    start = sizes * output if isinstance(sizes, int) else sum(sizes[:output])
    end = start + (sizes if isinstance(sizes, int) else sizes[output])
    part = {"dim": dim, "start": start, "end": min(end, base.shape[dim])}
    return Replay(torch.ops.aten.slice.Tensor, part, argument, form)


_UNBINDING, _CHUNKING = frozenset(overloads("unbind")), frozenset(overloads("chunk"))
_SPLITTING = {
    op: argument.name
    for name in ("split", "split_with_sizes", "chunk")
    for op in overloads(name)
    for argument in op._schema.arguments
    if argument.name in ("split_size", "split_sizes", "chunks")
}
"""View operators with several outputs, and their arguments that say of which sizes these are."""

LAZY = frozenset(
    op for op, rule in RULES.items() if rule in (view, reshape, same) and viewed_by(op)
)
"""View operators whose outputs are looked at when something reads them."""


RESHAPING = {
    getattr(packet, overload): getattr(getattr(torch.ops.aten, name), overload)
    for name in ("transpose", "t", "squeeze", "unsqueeze", "swapaxes", "swapdims", "as_strided")
    for packet in [getattr(torch.ops.aten, f"{name}_")]
    for overload in packet.overloads()
    if overload in getattr(torch.ops.aten, name).overloads()
}
"""Operators that turn a tensor into a view of what it was, and those that make this view."""


def _none(_: Tensor) -> None:
    return None


def _never(_: Tensor, axis: int, largest: bool) -> bool:
    return False


def refresh(track: Track, ledger: Ledger) -> Value:
    """The current value of a tensor that is read."""
    root = track.root
    root.value = as_read(root.value)
    if track is root and root.pieces is not None:
        pieces, root.pieces = root.pieces, None
        root.value = pieces.read(ledger, pieces.form) or root.value
    elif track is not root and track.seen != root.version:
        placed = None if root.pieces is None else _placed(track, root.pieces.form)
        if root.pieces is not None and placed is None:
            refresh(root, ledger)
        found = None
        if root.pieces is not None and placed is not None:
            found = root.pieces.read(ledger, placed)
        track.value = found or _viewed(track, root, ledger)
        track.seen = root.version
        track.is_state = False
    return track.value


def named(track: Track, ledger: Ledger) -> Value | None:
    """The value of a tensor whose numbers are names of units, for a reader that treats them so."""
    root = track.root
    if root.pieces is not None:
        return None
    if root.value.when_named is not None:
        root.value = root.value.when_named()
    if root.value.names is None or track is root:
        return root.value if root.value.names is not None else None
    value = _viewed(track, root, ledger)
    return replace(value, names=root.value.names, when_read=root.value.when_read)


def may_be_named(track: Track) -> bool:
    """Whether the numbers of a tensor are names of units, if nothing has read them otherwise."""
    value = track.root.value
    return value.names is not None or value.when_named is not None


def may_be_sliced(track: Track) -> bool:
    """Whether rows of a tensor were given slices of a stack, if nothing has read them otherwise."""
    root = track.root
    return root.value.sliced is not None and root.pieces is None


def sliced(track: Track, ledger: Ledger) -> Sliced | None:
    """What rows hold that were given slices of a stack, for a reader that keeps them apart."""
    if not may_be_sliced(track):
        return None
    if track.base is None or track.replay is None:
        return track.value.sliced
    found, replay = sliced(track.base, ledger), track.replay
    shapes = track.base.value.shape, track.value.shape
    ways = Ways(partial(reshape_slices, ledger), partial(view_slices, ledger))
    return None if found is None else moved_slices(ways, found, *shapes, replay.op, replay)


def spread_of_track(track: Track) -> Later:
    """How the numbers of a tensor differ."""
    if track.base is None or track.replay is None:
        return track.spread or known(unknown(track.value.shape))
    return of_view(spread_of_track(track.base), track.replay.form, track.replay)


def _viewed(track: Track, root: Track, ledger: Ledger) -> Value:
    """A view's value, from the nearest one before it that is known.

    What lies between is not read by itself: only what is left in the end counts as selected.
    """
    chain = [track]
    while (base := chain[-1].base) is not None and base is not root and base.seen != root.version:
        chain.append(base)
    value = root.value if base is None else base.value
    known = len(ledger.members)
    for item in reversed(chain):
        if item.replay is not None:
            value = item.value = item.replay.value(ledger, value, item.value.shape)
    between = ledger.members[known:]
    if between and len(chain) > 1:
        ledger.members[known:] = [labels for labels in between if labels.numel() == 1]
        for field in value.fields:
            ledger.remember(field if isinstance(field, Labels) else None)
    return value


def _placed(track: Track, form: Tensor) -> Tensor | None:
    """The view that a tensor is of what all are views of; None if it has elements of another type.

    Args:
        track: of the tensor.
        form: a meta tensor in place of what all are views of.
    """
    if track.base is None or track.replay is None:
        return form
    base = _placed(track.base, form)
    placed = None if base is None else track.replay(base)
    return placed if placed is not None and placed.dtype == form.dtype else None


def write_through(track: Track, value: Value, ledger: Ledger) -> None:
    """A tensor takes on new content; so do its base and all other views of that."""
    root = track.root
    root.version += 1
    track.value = value
    track.seen = root.version
    track.is_state = root.is_state = False
    root.spread = None
    if track.base is None or track.replay is None:
        root.pieces = None
        track.value = value if track is root else as_read(value)
        return
    if value.sliced is not None and (whole := _as_root(track, value.sliced, ledger)) is not None:
        root.value, root.pieces, track.seen = whole, None, -1
        return
    root.value = as_read(root.value)
    track.value = value = as_read(value)
    form = _form_of(track.base, track.replay) if root.pieces is None else root.pieces.form
    placed = _placed(track, form)
    if placed is None:
        reason = "written to as elements of another type"
        for item in (value, refresh(root, ledger)):
            pinned_too(ledger, item, reason)
        root.value = pinned_value(root.value.shape, reason)
        return
    if root.pieces is None:
        root.pieces = Pieces(form, root.value)
    root.pieces.write(placed, value)


def as_read(value: Value) -> Value:
    """What a value is for a reader that knows of nothing but fields."""
    return value if value.when_read is None else value.when_read()


def _as_root(track: Track, rows: Sliced, ledger: Ledger) -> Value | None:
    """What all are views of, after a view that holds all of it in the same order was written to."""
    if track.base is None or track.replay is None:
        return None
    shape = track.root.value.shape
    placed = placed_in_root(track, _form_of(track.base, track.replay).dtype)
    if placed is None or placed.numel() != torch.Size(shape).numel() or not placed.is_contiguous():
        return None
    found = reshape_slices(ledger, rows, placed.shape, shape)
    return None if found is None else deferred(ledger, found, shape)


def placed_in_root(track: Track, dtype: torch.dtype) -> Tensor | None:
    """A meta tensor as a tensor lies in what all are views of, if that lay in memory in order.

    None if it could not be seen so, or has elements of another type.
    """
    form = torch.empty(track.root.value.shape, dtype=dtype, device="meta")
    if track.base is None or track.replay is None:
        return form
    whole = _form_of(track.base, track.replay)
    if whole.dtype != dtype:
        return None
    try:
        return _placed(track, form)
    except RuntimeError:
        return None


def _form_of(base: Track, replay: Replay) -> Tensor:
    """A meta tensor like what a view is a view of, directly or through others."""
    if base.base is None or base.replay is None:
        return replay.form
    return _form_of(base.base, base.replay)
