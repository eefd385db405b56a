"""Operators that only move data: they are run on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.labels import NONE, Field, Labels, Value, elements_of, labels_of, positions
from fxrebasin.passes.ledger import Ledger, free_labels
from fxrebasin.passes.rules.contraction import reshape_field
from fxrebasin.passes.rules.registry import Call, pin_everything, rule


def _strip(values: Tensor) -> Tensor:
    """Undo the expansion of axes along which labels do not vary."""
    for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True)):
        if size > 1 and stride == 0:
            values = values.narrow(axis, 0, 1)
    return values


def as_list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def view_fields(
    ledger: Ledger, value: Value, move: Callable[[Tensor], Any], outputs: int
) -> list[tuple[Field, ...]]:
    """Run a view operator on every field; no labels are copied."""
    found: list[list[Field]] = [[] for _ in range(outputs)]
    for item in value.fields:
        if isinstance(item, Labels):
            for fields, moved in zip(found, as_list(move(_full(item, value.shape))), strict=True):
                _add(ledger, fields, item, _strip(moved))
        else:
            for fields, moved in zip(found, as_list(move(item.view)), strict=True):
                elements = elements_of(item.state, moved)
                fields += [] if elements is None else [elements]
    return [tuple(fields) for fields in found]


def _full(item: Labels, shape: Sequence[int]) -> Tensor:
    return item.values.expand(tuple(shape))


def _add(ledger: Ledger, fields: list[Field], source: Labels, values: Tensor) -> None:
    if values.numel() == source.values.numel():
        moved = labels_of(values, source, source.injective)
    else:
        moved = free_labels(values, source) if not source.injective else labels_of(
            values, source, injective=True
        )
        ledger.remember(moved)
    fields += [] if moved is None else [moved]


@rule(
    *("transpose.int", "t", "permute", "expand", "slice.Tensor", "select.int", "unsqueeze"),
    *("squeeze", "split.Tensor", "split_with_sizes", "unbind.int", "diagonal", "chunk"),
    *("narrow", "movedim", "swapaxes", "numpy_T", "mT", "transpose_", "t_", "squeeze_"),
    *("unsqueeze_", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk"),
    *("permute_copy", "expand_copy", "slice_copy.Tensor", "select_copy.int", "unfold"),
)
def view(call: Call) -> Sequence[Value]:
    """Views: strides change, data do not. Run on labels that are expanded without a copy."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    functional = _out_of_place(call.op)
    moved = view_fields(
        call.ledger, value, lambda labels: functional(labels, **rest), len(call.outputs)
    )
    return [
        Value(tuple(out.shape), fields) for out, fields in zip(call.outputs, moved, strict=True)
    ]


def _out_of_place(op: Any) -> Any:
    name = op._schema.name.removeprefix("aten::")
    if not name.endswith("_"):
        return op
    return getattr(getattr(torch.ops.aten, name.removesuffix("_")), op._overloadname)


@rule("view.default", "_unsafe_view", "reshape", "_reshape_alias", "flatten.using_ints", "unflatten.int")
def reshape(call: Call) -> Sequence[Value]:
    value = call.value("self")
    fields = [
        part
        for item in value.fields
        for part in reshape_field(call.ledger, item, value.shape, call.shape)
    ]
    return [Value(call.shape, tuple(fields))]


@rule(
    *("clone", "detach", "detach_", "alias", "contiguous", "lift_fresh", "lift", "lift_fresh_copy"),
    *("positive", "view_as", "_to_cpu", "requires_grad_", "conj", "resolve_conj", "resolve_neg"),
    *("fake_quantize_per_tensor_affine.none", "detach_copy", "alias_copy"),
)
def same(call: Call) -> Sequence[Value]:
    return [Value(tuple(out.shape), call.value("self").fields) for out in call.outputs]


@rule("as_strided", "as_strided_")
def restride(call: Call) -> Sequence[Value]:
    """Other strides for the same storage; only the case of one axis that varies is understood."""
    value = call.value("self")
    if value.shape == call.shape and sum(size > 1 for size in value.shape) <= 1:
        return [value]
    return pin_everything("strides")(call)


def move_labels(
    call: Call, value: Value, move: Callable[[Tensor], Tensor], axes: Sequence[int]
) -> Value:
    """Run an operator that copies data on those fields that vary along the axes it works on."""
    ndim = len(value.shape)
    wanted = {axis % max(ndim, 1) for axis in axes}
    fields: list[Field] = []
    for item in _materialised(call.ledger, value, wanted):
        if not isinstance(item, Labels) or not wanted & set(item.axes):
            fields.append(item)
            continue
        shape = [
            size if axis in wanted else item.values.shape[axis]
            for axis, size in enumerate(value.shape)
        ]
        moved = free_labels(move(item.values.expand(shape)), item)
        call.ledger.remember(moved)
        fields += [] if moved is None else [moved]
    return Value(call.shape, tuple(fields))


def _materialised(ledger: Ledger, value: Value, axes: set[int]) -> list[Field]:
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
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    axes = list(rest["dims"]) or list(range(len(value.shape)))
    return [move_labels(call, value, lambda labels: call.op(labels, **rest), axes)]


@rule("repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "repeat_interleave.self_int")
def rearrange_all(call: Call) -> Sequence[Value]:
    """Positions that are copies of one another keep one label; new positions are told apart."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    fields: list[Field] = []
    for item in _materialised(call.ledger, value, set(range(len(value.shape)))):
        if isinstance(item, Labels):
            moved_values = call.op(_full(item, value.shape).contiguous(), **rest)
            for axis in range(moved_values.ndim):
                first = moved_values.narrow(axis, 0, 1)
                if bool((moved_values == first).all()):
                    moved_values = first
            moved = free_labels(moved_values, item)
            call.ledger.remember(moved)
            fields += [] if moved is None else [moved]
    return [Value(call.shape, tuple(fields))]


@rule("constant_pad_nd")
def pad(call: Call) -> Sequence[Value]:
    """New positions hold one number; they are told apart from the old ones, not pinned."""
    value = call.value("self")
    padding = list(call.args["pad"])
    ndim = len(value.shape)
    padded = [ndim - 1 - pair for pair in range(len(padding) // 2) if any(padding[2 * pair : 2 * pair + 2])]
    fields: list[Field] = []
    for item in _materialised(call.ledger, value, set(padded)):
        if not isinstance(item, Labels) or not set(item.axes) & set(padded):
            fields.append(item)
            continue
        mine = [0 if ndim - 1 - i // 2 not in item.axes else p for i, p in enumerate(padding)]
        values = torch.constant_pad_nd(item.values, mine, NONE)
        moved = free_labels(values, item)
        call.ledger.remember(moved)
        fields += [] if moved is None else [moved]
    for axis in padded:
        fields.append(_inside(value, call.shape, axis, padding))
    return [call.join(fields)]


def _inside(value: Value, shape: Sequence[int], axis: int, padding: Sequence[int]) -> Labels:
    """Tells old positions from new ones along one axis."""
    before = padding[2 * (len(shape) - 1 - axis)]
    start, end = max(before, 0), max(before, 0) + value.shape[axis] + min(before, 0)
    values = torch.full((shape[axis],), -2)
    values[start : min(end, shape[axis])] = -3
    view_shape = [1] * len(shape)
    view_shape[axis] = shape[axis]
    return Labels(values.view(view_shape), (axis,), False, True, "padding")


@rule("cat", "concat")
def concatenate(call: Call) -> Sequence[Value]:
    tensors = [t for t in call.args["tensors"] if not (t.ndim == 1 and t.numel() == 0)]
    values = [call.lookup(tensor) for tensor in tensors]
    dim = call.args["dim"] % max(len(call.shape), 1)
    return [concatenate_values(call, values, dim)]


@rule("stack")
def stack(call: Call) -> Sequence[Value]:
    tensors = call.args["tensors"]
    dim = call.args["dim"] % len(call.shape)
    values = []
    for tensor in tensors:
        value = call.lookup(tensor)
        (fields,) = view_fields(call.ledger, value, lambda labels: labels.unsqueeze(dim), 1)
        shape = (*value.shape[:dim], 1, *value.shape[dim:])
        values.append(Value(shape, fields))
    return [concatenate_values(call, values, dim)]


def concatenate_values(call: Call, values: Sequence[Value], dim: int) -> Value:
    """Pieces along an axis; their other axes stay independent of each other.

    Fields of different pieces that vary along the same other axes become one field that also
    varies along `dim`; a piece without such a field gets `NONE`, which is what zeros need.
    """
    if len(values) == 1:
        return Value(call.shape, values[0].fields)
    pieces = [_materialised(call.ledger, value, set(range(len(value.shape)))) for value in values]
    labels = [[item for item in piece if isinstance(item, Labels)] for piece in pieces]
    common, rest = _split_common(call.ledger, labels, dim)
    fields: list[Field] = [*common]
    for row in _aligned(rest, dim):
        fields.append(_concatenate_row(call.ledger, row, values, dim))
    sizes = [value.shape[dim] for value in values]
    if not any(isinstance(f, Labels) and f.axes == (dim,) and f.injective for f in fields):
        fields.append(_segments(sizes, len(call.shape), dim))
    return call.join(fields)


def _split_common(
    ledger: Ledger, pieces: Sequence[Sequence[Labels]], dim: int
) -> tuple[list[Labels], list[list[Labels]]]:
    """Fields off the concatenated axis that all pieces share, and what remains of each piece."""
    common = []
    rest = [list(piece) for piece in pieces]
    for item in pieces[0]:
        if dim in item.axes:
            continue
        partners = [next((o for o in piece if _equal(ledger, item, o)), None) for piece in rest]
        if all(partner is not None for partner in partners):
            common.append(item)
            for piece, partner in zip(rest, partners, strict=True):
                if partner is not None:
                    piece.remove(partner)
    return common, rest


def _equal(ledger: Ledger, first: Labels, second: Labels) -> bool:
    if first.values.shape != second.values.shape or first.rigid != second.rigid:
        return False
    one, two = first.values.numpy(), second.values.numpy()
    return bool((ledger.find(one) == ledger.find(two)).all())


def _aligned(pieces: Sequence[list[Labels]], dim: int) -> list[list[Labels | None]]:
    """Rows of fields, one per piece, that vary along the same axes besides `dim`."""
    keys: dict[tuple[tuple[int, ...], int], None] = {}
    keyed: list[dict[tuple[tuple[int, ...], int], Labels]] = []
    for piece in pieces:
        seen: dict[tuple[tuple[int, ...], int], Labels] = {}
        for item in piece:
            axes = tuple(axis for axis in item.axes if axis != dim)
            count = sum(1 for key in seen if key[0] == axes)
            seen[(axes, count)] = item
        keys.update(dict.fromkeys(seen))
        keyed.append(seen)
    return [[piece.get(key) for piece in keyed] for key in sorted(keys)]


def _concatenate_row(
    ledger: Ledger, row: Sequence[Labels | None], values: Sequence[Value], dim: int
) -> Labels:
    ndim = len(values[0].shape)
    shape = [1] * ndim
    for item in row:
        if item is not None:
            shape = [max(a, b) for a, b in zip(shape, item.values.shape, strict=True)]
    parts = []
    for item, value in zip(row, values, strict=True):
        shape[dim] = value.shape[dim]
        filler = torch.full([1] * ndim, NONE)
        parts.append((filler if item is None else item.values).expand(shape))
    joined = torch.cat(parts, dim)
    found = [item for item in row if item is not None]
    rigid = all(item.rigid for item in found)
    reason = next((item.reason for item in found if item.reason), "")
    result = free_labels(joined)
    if result is None:
        return Labels(joined, (), False, rigid, reason)
    return Labels(result.values, result.axes, result.injective, rigid, reason)


def _segments(sizes: Sequence[int], ndim: int, dim: int) -> Labels:
    """Which piece a position of a concatenated axis comes from."""
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    shape = [1] * ndim
    shape[dim] = int(index.numel())
    return Labels((-2 - index).view(shape), (dim,), len(sizes) == index.numel(), True, "segment")


@rule("tril", "triu", "tril_", "triu_")
def triangle(call: Call) -> Sequence[Value]:
    """A mask over the last two axes."""
    return [call.pin_axes(call.value("self"), [-2, -1], "mask by position")]


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
    fields += [positions(ndim, axis, split[axis], reason) for axis in (-2 + ndim, -1 + ndim) if split[axis] > 1]
    merged = [part for item in fields for part in reshape_field(call.ledger, item, split, call.shape)]
    return [call.join(merged)]


def _leading(value: Value, trailing: int) -> set[int]:
    return set(range(len(value.shape) - trailing))
