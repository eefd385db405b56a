"""Operators that only move data: they are run on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import (
    Field,
    Labels,
    Value,
    elements_of,
    labels_of,
    pinned_value,
    place,
    positions,
    reshape_groups,
    squeeze_constant,
)
from fxrebasin.passes.fields.labels import INSIDE, NONE, OUTSIDE
from fxrebasin.passes.fields.ledger import Ledger, free_labels
from fxrebasin.passes.fields.rows import distinct_rows
from fxrebasin.passes.rules.contraction import pick_axes, reshape_field, whole_view
from fxrebasin.passes.rules.registry import Call, pin_everything, rule


def _strip(values: Tensor) -> Tensor:
    """Undo the expansion of axes along which labels do not vary."""
    for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if size > 1 and stride == 0:
            values = values.narrow(axis, 0, 1)
    return values


def as_list(result: Any) -> list[Tensor]:
    """The tensors that an operator returned, whether one or several."""
    return [result] if isinstance(result, Tensor) else list(result)


def view_fields(
    ledger: Ledger, value: Value, move: Callable[[Tensor], Any], outputs: int
) -> list[tuple[Field, ...]]:
    """Run a view operator on every field; no labels are copied."""
    found: list[list[Field]] = [[] for _ in range(outputs)]
    for item in value.fields:
        if isinstance(item, Labels):
            _view_labels(ledger, item, value.shape, move, found)
            continue
        views = as_list(move(whole_view(item, value.shape)))
        if any(_needs_labels(moved) for moved in views):
            for part in ledger.separate(item):
                _view_labels(ledger, part, value.shape, move, found)
            continue
        for fields, moved in zip(found, views, strict=True):
            elements = elements_of(item.state, moved)
            fields += [] if elements is None else [elements]
    return [met(ledger, fields) for fields in found]


def met(ledger: Ledger, fields: Sequence[Field]) -> tuple[Field, ...]:
    """Fields that came to lie along the same axes: which labels of theirs meet has to be recorded.

    Of positions that were chosen, or brought together, the labels are no longer all pairs that
    fields on axes of their own have.
    """
    axes = [axis for item in fields for axis in item.axes]
    return tuple(fields) if len(set(axes)) == len(axes) else ledger.join(fields)


def _view_labels(
    ledger: Ledger,
    item: Labels,
    shape: Sequence[int],
    move: Callable[[Tensor], Any],
    found: Sequence[list[Field]],
) -> None:
    for fields, moved in zip(found, as_list(move(_full(item, shape))), strict=True):
        values = _strip(moved)
        if values.numel() == item.values.numel() and not _overlaps(values):
            labels = labels_of(values, item, item.injective)
        else:
            labels = chosen_labels(ledger, values, item)
        fields += [] if labels is None else [labels]


def _needs_labels(moved: Tensor) -> bool:
    """Whether a view of a state tensor cannot say what it holds by its strides.

    One that holds a single element of several, at however many positions, varies along no axis; of
    windows that overlap, an element is at several positions.
    """
    single = moved.numel() > 0 and elements_of("", moved) is None
    return single or _overlaps(moved)


def _overlaps(view: Tensor) -> bool:
    """Whether an element may be at several positions, other than by expansion."""
    reached = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride > 0:
            if stride <= reached:
                return True
            reached += stride * (size - 1)
    return False


def _full(item: Labels, shape: Sequence[int]) -> Tensor:
    return item.values.expand(tuple(shape))


def chosen_labels(ledger: Ledger, values: Tensor, source: Labels) -> Labels | None:
    """The labels of positions that were chosen from those of a field.

    That they were chosen sets their units apart, even where only one is left, which may then be at
    several positions.
    """
    chosen = free_labels(values, source)
    if chosen is not None:
        ledger.remember(chosen)
    elif values.numel():
        ledger.remember_units(values.reshape(-1)[:1].numpy())
    return chosen


@rule(
    *("transpose.int", "t", "permute", "expand", "slice.Tensor", "select.int", "unsqueeze"),
    *("squeeze", "split.Tensor", "split_with_sizes", "unbind.int", "diagonal", "chunk"),
    *("narrow.default", "movedim", "swapaxes", "numpy_T.default", "mT.default", "transpose_", "t_"),
    *("squeeze_", "unsqueeze_", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk"),
    *("permute_copy", "expand_copy", "slice_copy.Tensor", "select_copy.int", "unfold"),
)
def view(call: Call) -> Sequence[Value]:
    """Views: strides change, data do not. Run on labels that are expanded without a copy."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    functional = _as_view(call.op)
    moved = view_fields(
        call.ledger, value, lambda labels: functional(labels, **rest), len(call.outputs)
    )
    return [
        Value(tuple(out.shape), fields) for out, fields in zip(call.outputs, moved, strict=True)
    ]


def _as_view(op: Any) -> Any:
    """The operator that returns a view where this one copies or works in place."""
    name = op._schema.name.removeprefix("aten::").removesuffix("_").removesuffix("_copy")
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, op._overloadname if op._overloadname in packet.overloads() else "int")


@rule("view.default", "_unsafe_view", "reshape", "_reshape_alias", "flatten.using_ints")
def reshape(call: Call) -> Sequence[Value]:
    """Axes are merged and split, which the labels say by themselves."""
    return [reshape_value(call.ledger, call.value("self"), call.shape)]


def reshape_value(ledger: Ledger, value: Value, shape: Sequence[int]) -> Value:
    """Reshape all fields; axes that only hold positions become axes that only hold positions."""
    after = tuple(shape)
    if 0 in after:
        return Value(after)
    rigid, rest, opaque = _opaque_groups(value, after)
    fields: list[Field] = []
    for item in rest:
        fields += reshape_field(ledger, item, value.shape, after)
    for axes in opaque:
        for axis in axes:
            if after[axis] > 1:
                fields.append(positions(len(after), axis, after[axis], rigid))
    return Value(after, tuple(_with_plain_positions(fields, after)))


def _with_plain_positions(fields: list[Field], shape: tuple[int, ...]) -> list[Field]:
    """Replace rigid fields that tell apart all positions of some axes by one field per axis.

    Cutting an image into windows makes rows and columns vary along two axes each; that none of
    these positions can move is all that matters.
    """
    rigid = [item for item in fields if isinstance(item, Labels) and item.rigid]
    if all(len(item.axes) == 1 for item in rigid):
        return fields
    free = {axis for item in fields if item not in rigid for axis in item.axes}
    graph: nx.Graph[int] = nx.Graph()
    for item in rigid:
        nx.add_path(graph, item.axes)
    for axes in map(sorted, nx.connected_components(graph)):
        mine = [item for item in rigid if item.axes[0] in axes]
        if len(axes) > 1 and not free & set(axes) and _tell_apart(mine, axes, shape):
            fields = [item for item in fields if item not in mine]
            fields += [positions(len(shape), axis, shape[axis], mine[0].reason) for axis in axes]
    return fields


def _tell_apart(fields: Sequence[Labels], axes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether no two positions of the axes have the same labels in all fields."""
    grid = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    columns = [item.values.expand(grid).reshape(-1).numpy() for item in fields]
    return len(distinct_rows(columns)) == columns[0].size


def _opaque_groups(
    value: Value, after: tuple[int, ...]
) -> tuple[str, list[Field], list[tuple[int, ...]]]:
    """Groups of axes, all of them pinned positions, that a reshape merges or splits."""
    pinned = {
        item.axes[0]: item
        for item in value.fields
        if isinstance(item, Labels) and item.rigid and item.injective and len(item.axes) == 1
    }
    held = {axis for item in value.fields if item not in pinned.values() for axis in item.axes}
    opaque, gone, reason = [], set(), ""
    for axes_in, axes_out in reshape_groups(value.shape, after):
        moving = [axis for axis in axes_in if value.shape[axis] > 1]
        if len(axes_in) + len(axes_out) <= 2 or not moving:
            continue
        if all(axis in pinned and axis not in held for axis in moving):
            opaque.append(axes_out)
            gone |= set(moving)
            reason = reason or pinned[moving[0]].reason
    rest = [item for item in value.fields if not (set(item.axes) & gone)]
    return reason, rest, opaque


@rule(
    *("detach", "detach_", "alias", "contiguous", "lift_fresh", "lift", "lift_fresh_copy"),
    *("positive", "view_as", "requires_grad_", "conj", "_conj", "resolve_conj", "resolve_neg"),
    *("detach_copy", "alias_copy"),
)
def same(call: Call) -> Sequence[Value]:
    """The same numbers at the same positions."""
    return [Value(tuple(out.shape), call.value("self").fields) for out in call.outputs]


@rule("view_as_real")
def real_pairs(call: Call) -> Sequence[Value]:
    """Real and imaginary part along a new last axis."""
    value = call.value("self")
    ndim = len(call.shape)
    fields = [place(item, range(ndim - 1), ndim) for item in value.fields]
    parts = positions(ndim, ndim - 1, 2, f"real and imaginary part of {call.op}")
    return [Value(call.shape, (*fields, parts))]


@rule("view_as_complex")
def complex_numbers(call: Call) -> Sequence[Value]:
    """The last axis holds real and imaginary part; one number comes of each pair."""
    value = call.pin_axes(call.value("self"), [-1], "real and imaginary part")
    kept = range(len(call.shape))
    fields = (pick_axes(item, kept) for item in call.ledger.reduce(value, kept))
    return [Value(call.shape, tuple(fields))]


@rule("as_strided")
def restride(call: Call) -> Sequence[Value]:
    """Other strides for the same storage: run on labels that are laid out as the tensor is."""
    value, tensor = call.value("self"), call.args["self"]
    form = torch.empty_strided(value.shape, call.strides[0], dtype=torch.int64, device="meta")
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    start = call.args.get("storage_offset")
    start = 0 if start is None or start == tensor.storage_offset() else start
    wanted = call.args["size"], call.args["stride"], start
    inside = _span(*wanted) <= _span(form.shape, form.stride(), 0)
    if _overlaps(form) or 0 in (*value.shape, *call.shape) or not inside or (start and not whole):
        return pin_everything("strides")(call)

    def move(labels: Tensor) -> Tensor:
        laid = torch.empty_strided(form.shape, form.stride(), dtype=labels.dtype).copy_(labels)
        return laid.as_strided(*wanted)

    fields: list[Field] = []
    for item in materialised(call.ledger, value, set(range(len(value.shape)))):
        if isinstance(item, Labels):
            moved = move(_full(item, value.shape))
            values = squeeze_constant(moved, range(moved.ndim))
            labels = chosen_labels(call.ledger, values, item)
            fields += [] if labels is None else [labels]
    return [call.join(fields)]


def _span(size: Sequence[int], stride: Sequence[int], start: int) -> int:
    """How much memory a view reaches into, in elements."""
    return 1 + start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


def move_labels(
    call: Call, value: Value, move: Callable[[Tensor], Tensor], axes: Sequence[int]
) -> Value:
    """Run an operator that copies data on those fields that vary along the axes it works on."""
    ndim = len(value.shape)
    wanted = {axis % max(ndim, 1) for axis in axes}
    fields: list[Field] = []
    for item in materialised(call.ledger, value, wanted):
        if not isinstance(item, Labels) or not wanted & set(item.axes):
            fields.append(item)
            continue
        shape = [
            size if axis in wanted else item.values.shape[axis]
            for axis, size in enumerate(value.shape)
        ]
        call.ledger.hold_routed(item)
        values = squeeze_constant(move(item.values.expand(shape)), range(ndim))
        moved = chosen_labels(call.ledger, values, item)
        fields += [] if moved is None else [moved]
    return Value(call.shape, met(call.ledger, fields))


def materialised(ledger: Ledger, value: Value, axes: set[int]) -> list[Field]:
    """The fields, with state tensors that vary along the given axes turned into labels."""
    fields: list[Field] = []
    for item in value.fields:
        if isinstance(item, Labels) or not axes & set(item.axes):
            fields.append(item)
        else:
            fields += ledger.separate(item)
    return fields


@rule("flip", "roll")
def rearrange(call: Call) -> Sequence[Value]:
    """Positions along some axes change places."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    axes = list(rest["dims"]) or list(range(len(value.shape)))
    return [move_labels(call, value, lambda labels: call.op(labels, **rest), axes)]


@rule(
    *("repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("repeat_interleave.self_int",),
)
def rearrange_all(call: Call) -> Sequence[Value]:
    """Positions that are copies of one another keep one label; new positions are told apart."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    fields: list[Field] = []
    for item in materialised(call.ledger, value, set(range(len(value.shape)))):
        if isinstance(item, Labels):
            values = call.op(_full(item, value.shape).contiguous(), **rest)
            values = squeeze_constant(values, range(values.ndim))
            moved = chosen_labels(call.ledger, values, item)
            fields += [] if moved is None else [moved]
    return [Value(call.shape, met(call.ledger, fields))]


@rule("constant_pad_nd")
def pad(call: Call) -> Sequence[Value]:
    """New positions hold one number; they are told apart from the old ones, not pinned."""
    value = call.value("self")
    padding = list(call.args["pad"])
    ndim = len(value.shape)
    padded = [
        ndim - 1 - pair
        for pair in range(len(padding) // 2)
        if any(padding[2 * pair : 2 * pair + 2])
    ]
    fields: list[Field] = []
    for item in materialised(call.ledger, value, set(padded)):
        if not isinstance(item, Labels) or not set(item.axes) & set(padded):
            fields += call.ledger.coarsen(item, set(range(ndim)) - set(padded))
            continue
        mine = [0 if ndim - 1 - i // 2 not in item.axes else p for i, p in enumerate(padding)]
        values = torch.constant_pad_nd(item.values, mine, NONE)
        moved = chosen_labels(call.ledger, values, item)
        fields += [] if moved is None else [moved]
    inside = (_inside(value, call.shape, axis, padding) for axis in padded)
    return [call.join([*fields, *filter(None, inside)])]


def _inside(value: Value, shape: Sequence[int], axis: int, padding: Sequence[int]) -> Labels | None:
    """Tells old positions from new ones along one axis; None where there are no new ones."""
    before = padding[2 * (len(shape) - 1 - axis)]
    start, end = max(before, 0), max(before, 0) + value.shape[axis] + min(before, 0)
    values = torch.full((shape[axis],), OUTSIDE)
    values[start : min(end, shape[axis])] = INSIDE
    if int(values.min()) == int(values.max()):
        return None
    view_shape = [1] * len(shape)
    view_shape[axis] = shape[axis]
    return Labels(values.view(view_shape), (axis,), False, True, "padding")


@rule("diag_embed")
def diagonal_matrices(call: Call) -> Sequence[Value]:
    """Elements on a diagonal, with zeros around: rows and columns are those of the elements.

    A row and a column belong together also where they hold an element that others are equal to.
    """
    if call.args["offset"] != 0:
        return pin_everything("a diagonal beside the main one")(call)
    ndim = len(call.shape)
    rows, columns = (call.args[name] % ndim for name in ("dim1", "dim2"))
    others = [axis for axis in range(ndim) if axis not in (rows, columns)]
    fields = call.value("self").fields
    placed = [place(item, [*others, axis], ndim) for item in fields for axis in (rows, columns)]
    units = call.ledger.fresh(call.shape[rows])
    for axis in (rows, columns) if len(units) > 1 else ():
        shape = [-1 if other == axis else 1 for other in range(ndim)]
        placed.append(Labels(units.view(shape), (axis,), injective=True))
    return [call.join(placed)]


@rule("tril", "triu", "tril_", "triu_")
def triangle(call: Call) -> Sequence[Value]:
    """A mask over the last two axes."""
    mask = pinned_value(call.shape, f"mask by position of {call.op}").fields
    over = [item for item in mask if item.axes[0] >= len(call.shape) - 2]
    return [call.join([*call.value("self").fields, *over])]


@rule("im2col")
def unfold_image(call: Call) -> Sequence[Value]:
    """[n, c, h, w] -> [n, c * k * k, l]: the channel is the major part of the middle axis."""
    value = call.value("self")
    channels = value.shape[-3]
    kept = call.ledger.reduce(call.pin_axes(value, [-2, -1], "position"), _leading(value, 2))
    reason = f"position of {call.op}"
    *leading, taps, places = call.shape
    split = [*leading, channels, taps // channels, places]
    ndim = len(split)
    fields: list[Field] = []
    for item in kept:
        fields += reshape_field(call.ledger, item, [*value.shape[:-2], 1, 1], [*split[:-2], 1, 1])
    fields += [
        positions(ndim, axis, split[axis], reason)
        for axis in (-2 + ndim, -1 + ndim)
        if split[axis] > 1
    ]
    merged = [
        part for item in fields for part in reshape_field(call.ledger, item, split, call.shape)
    ]
    return [call.join(merged)]


@rule("col2im")
def fold_image(call: Call) -> Sequence[Value]:
    """[n, c * k * k, l] -> [n, c, h, w]: adds up the patches that `im2col` cuts out."""
    value = call.value("self")
    *leading, _, places = value.shape
    channels = call.shape[-3]
    split = [*leading, channels, value.shape[-2] // channels, places]
    fields = [
        part
        for item in value.fields
        for part in reshape_field(call.ledger, item, value.shape, split)
    ]
    pinned = call.pin_axes(Value(tuple(split), tuple(fields)), [-2, -1], "position")
    kept = call.ledger.reduce(pinned, range(len(split) - 2))
    reason = f"position of {call.op}"
    ndim = len(call.shape)
    fresh = [
        positions(ndim, axis, call.shape[axis], reason)
        for axis in (ndim - 2, ndim - 1)
        if call.shape[axis] > 1
    ]
    return [Value(call.shape, (*kept, *fresh))]


def _leading(value: Value, trailing: int) -> set[int]:
    return set(range(len(value.shape) - trailing))


@rule("glu")
def gated_linear_unit(call: Call) -> Sequence[Value]:
    """The first half of an axis, times the sigmoid of the second."""
    value = call.value("self")
    dim = call.args["dim"]
    halves = view_fields(call.ledger, value, lambda labels: labels.chunk(2, dim), 2)
    return [call.join([item for half in halves for item in half])]
