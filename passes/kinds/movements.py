"""Operators that move units of a class to other places of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxrebasin.passes.kinds.marks import (
    Mark,
    Value,
    raised,
    reshaped,
    same_units,
)
from fxrebasin.passes.kinds.walk import Step, handles, name_of, shape_of


@handles("clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous")
def _same(step: Step) -> list[Value]:
    return [step.value(step.args["self"])]


@handles("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(step: Step) -> list[Value]:
    before, after = shape_of(step.args["self"]), step.shape
    return [step.move("self", lambda units: reshaped(units, before, after))]


@handles("transpose", "t", "permute")
def _transpose(step: Step) -> list[Value]:
    rank = len(step.shape)
    order = list(range(rank))
    if "dims" in step.args:
        order = [dim % rank for dim in step.args["dims"]]
    elif rank > 1:
        one, two = (step.args.get(name, k) % rank for k, name in enumerate(("dim0", "dim1")))
        order[one], order[two] = order[two], order[one]
    return [step.move("self", lambda units: units.permute(order))]


@handles("expand")
def _expand(step: Step) -> list[Value]:
    return [step.move("self", lambda units: raised(units, len(step.shape)))]


@handles("unsqueeze")
def _unsqueeze(step: Step) -> list[Value]:
    return [step.move("self", lambda units: units.unsqueeze(step.args["dim"]))]


@handles("squeeze")
def _squeeze(step: Step) -> list[Value]:
    before = shape_of(step.args["self"])
    dims = step.args.get("dim")
    wanted = range(len(before)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = sorted({d % len(before) for d in wanted if before[d] == 1}, reverse=True)

    def squeezed(units: Tensor) -> Tensor:
        for dim in gone:
            units = units.squeeze(dim)
        return units

    return [step.move("self", squeezed)]


@handles("select")
def _select(step: Step) -> list[Value]:
    return [_picked(step, step.args["dim"], step.args["index"])]


def _picked(step: Step, dim: int, index: int) -> Value:
    """One position along an axis."""
    return step.move("self", lambda units: units.select(dim, index if units.shape[dim] > 1 else 0))


@handles("slice")
def _slice(step: Step) -> list[Value]:
    dim = step.args["dim"]
    cut = {name: step.args[name] for name in ("start", "end", "step")}

    def sliced(units: Tensor) -> Tensor:
        whole = units.shape[dim] == 1
        return units if whole else torch.ops.aten.slice.Tensor(units, dim, **cut)

    return [step.move("self", sliced)]


@handles("split", "split_with_sizes", "chunk", "unbind")
def _split(step: Step) -> list[Value]:
    shape = shape_of(step.args["self"])
    dim = step.args["dim"] % len(shape)
    if name_of(step.node) == "unbind":
        return [_picked(step, dim, index) for index in range(shape[dim])]
    found, start = [], 0
    for item in step.node.meta["val"]:
        end = start + int(item.shape[dim])

        def part(units: Tensor, start: int = start, end: int = end) -> Tensor:
            return (
                units
                if units.shape[dim] == 1
                else units[(slice(None),) * dim + (slice(start, end),)]
            )

        found.append(step.move("self", part))
        start = end
    return found


@handles("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full")
def _shaped_like(step: Step) -> list[Value]:
    return [()]


@handles("flip")
def _flip(step: Step) -> list[Value]:
    return [step.move("self", lambda units: units.flip(step.args["dims"]))]


@handles("roll")
def _roll(step: Step) -> list[Value]:
    if not step.args["dims"]:
        return step.give_up()
    return [step.move("self", lambda u: u.roll(step.args["shifts"], step.args["dims"]))]


@handles("repeat")
def _repeat(step: Step) -> list[Value]:
    def repeated(units: Tensor) -> Tensor:
        full = raised(units, len(step.shape))
        pairs = zip(step.args["repeats"], full.shape, strict=True)
        return full.repeat([count if size > 1 else 1 for count, size in pairs])

    return [step.move("self", repeated)]


@handles("cat", "stack")
def _cat(step: Step) -> list[Value]:
    """Parts along an axis: each keeps units that differ along it, and all share others."""
    dim = _normalised(step.args["dim"], len(step.shape))
    parts = [_part(step, item, dim) for item in step.args["tensors"] if shape_of(item) != (0,)]
    if len(parts) == 1 and name_of(step.node) == "cat":
        return [tuple(replace(m, form=step.analysis.carried(m), source=None) for m in parts[0][1])]
    found = list(_side_by_side(step, parts, dim))
    marks = [] if step.analysis.apart else [mark for _, own in parts for mark in own]
    across = [mark for mark in marks if mark.units.shape[dim] == 1]
    while across:
        first, units = across[0], across[0].units
        alike = [mark for mark in across if same_units(mark.units, units)]
        across = [mark for mark in across if not same_units(mark.units, units)]
        if len(alike) != len(parts):
            step.give_up_marks(alike)
            continue
        for mark in alike[1:]:
            first = Mark(units, step.analysis.joined(first, mark))
        found.append(first)
    return [tuple(found)]


def _part(step: Step, item: fx.Node, dim: int) -> tuple[int, Value]:
    """How long a part is along the axis, and what is known of it."""
    if name_of(step.node) == "cat":
        return shape_of(item)[dim], step.value(item)
    moved = (mark.moved(lambda units: units.unsqueeze(dim)) for mark in step.value(item))
    return 1, tuple(mark for mark in moved if mark is not None)


def _side_by_side(step: Step, parts: Sequence[tuple[int, Value]], dim: int) -> Value:
    """Marks along the axis of a concatenation: each part keeps its own."""
    found: list[Mark | None] = []
    start, total = 0, step.shape[dim]
    for length, marks in parts:

        def at(part: Tensor, start: int = start, length: int = length) -> Tensor:
            sizes = list(part.shape)
            sizes[dim] = total
            empty = 0.0 if part.is_floating_point() else -1
            whole = part.new_full(sizes, empty)
            whole.narrow(dim, start, length).copy_(part)
            return whole

        wide = [mark for mark in marks if mark.units.shape[dim] > 1 or step.analysis.apart]
        found += [mark.moved(at) for mark in wide]
        start += length
    return tuple(mark for mark in found if mark is not None)


def _normalised(dim: int, rank: int) -> int:
    return dim % rank if rank else 0
