"""Operators that only move data: they are run on the labels themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.passes.fields.fields import (
    Field,
    Labels,
    Value,
    onto_axes,
    pinned_value,
    squeeze_constant,
)
from fxrebasin.passes.fields.labels import NONE
from fxrebasin.passes.fields.moving import overlaps, part_of_axis
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import overloads, pin_everything, rule

_VIEWS = (
    *("transpose.int", "t", "permute", "expand", "slice.Tensor", "select.int", "unsqueeze"),
    *("squeeze", "split.Tensor", "split_with_sizes", "unbind.int", "diagonal", "chunk"),
    *("narrow.default", "movedim", "swapaxes", "numpy_T.default", "mT.default", "transpose_", "t_"),
    *("squeeze_", "unsqueeze_", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk"),
    *("permute_copy", "expand_copy", "slice_copy.Tensor", "select_copy.int", "unfold"),
)


@rule(*_VIEWS)
def view(call: Call) -> Sequence[Value]:
    """Views: strides change, data do not. Run on labels that are expanded without a copy."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    functional = _AS_VIEW[call.op]
    moved = call.view(value, lambda labels: functional(labels, **rest), len(call.outputs))
    return [
        Value(tuple(out.shape), fields) for out, fields in zip(call.outputs, moved, strict=True)
    ]


def _as_view(name: str, op: OpOverload) -> OpOverload:
    """The operator that returns a view where this one copies or works in place."""
    packet = getattr(torch.ops.aten, name.partition(".")[0].removesuffix("_").removesuffix("_copy"))
    overload = op._overloadname if op._overloadname in packet.overloads() else "int"
    found: OpOverload = getattr(packet, overload)
    return found


_AS_VIEW = {op: _as_view(name, op) for name in _VIEWS for op in overloads(name)}


@rule("view.default", "_unsafe_view", "reshape", "_reshape_alias", "flatten.using_ints")
def reshape(call: Call) -> Sequence[Value]:
    """Axes are merged and split, which the labels say by themselves."""
    return [call.reshaped(call.value("self"))]


@rule(
    *("detach", "detach_", "alias", "contiguous", "lift_fresh", "lift", "lift_fresh_copy"),
    *("positive", "view_as", "requires_grad_", "conj", "_conj", "resolve_conj", "resolve_neg"),
    *("detach_copy", "alias_copy"),
)
def same(call: Call) -> Sequence[Value]:
    """The same numbers at the same positions."""
    return [Value(tuple(out.shape), call.value("self").fields) for out in call.outputs]


_PAIRS, _OF_PAIRS = pattern("... -> ... !part"), pattern("... !part -> ...")


@rule("view_as_real")
def real_pairs(call: Call) -> Sequence[Value]:
    """Real and imaginary part along a new last axis."""
    return [call.follow(_PAIRS, call.value("self"), reason="real and imaginary part")]


@rule("view_as_complex")
def complex_numbers(call: Call) -> Sequence[Value]:
    """The last axis holds real and imaginary part; each pair becomes one number."""
    return [call.follow(_OF_PAIRS, call.value("self"), reason="real and imaginary part")]


@rule("as_strided")
def restride(call: Call) -> Sequence[Value]:
    """Other strides for the same storage: run on labels that are laid out as the tensor is."""
    value = call.value("self")
    form = torch.empty_strided(value.shape, call.strides[0], dtype=torch.int64, device="meta")
    wanted = call.args["size"], call.args["stride"], _start(call)
    reached = _span(*wanted) <= _span(form.shape, form.stride(), 0)
    if overlaps(form) or 0 in (*value.shape, *call.shape) or not reached or not _is_placed(call):
        return pin_everything("strides")(call)

    def move(labels: Tensor) -> Tensor:
        laid = torch.empty_strided(form.shape, form.stride(), dtype=labels.dtype).copy_(labels)
        return laid.as_strided(*wanted)

    return [call.join(_all_moved(call, value, move))]


def _start(call: Call) -> int:
    """Where in memory the view starts, counted from the tensor, or from the storage it fills."""
    start: int | None = call.args.get("storage_offset")
    return 0 if start is None or start == call.args["self"].storage_offset() else start


def _is_placed(call: Call) -> bool:
    """Whether it is known where in the tensor the view starts."""
    tensor = call.args["self"]
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return whole or not _start(call)


def _all_moved(call: Call, value: Value, move: Callable[[Tensor], Tensor]) -> list[Field]:
    """The fields after a move along any axes."""
    fields: list[Field] = []
    for item in call.materialised(value, range(len(value.shape))):
        if isinstance(item, Labels):
            moved = move(item.values.expand(value.shape))
            fields += call.chosen(squeeze_constant(moved, range(moved.ndim)), item)
    return fields


def _span(size: Sequence[int], stride: Sequence[int], start: int) -> int:
    """How much memory a view reaches into, in elements."""
    return 1 + start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))


@rule("flip", "roll")
def rearrange(call: Call) -> Sequence[Value]:
    """Positions along some axes change places."""
    value = call.value("self")
    rest = {name: item for name, item in call.args.items() if name != "self"}
    axes = list(rest["dims"]) or list(range(len(value.shape)))
    return [call.move(value, lambda labels: call.op(labels, **rest), axes)]


@rule(
    *("repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *("repeat_interleave.self_int",),
)
def rearrange_all(call: Call) -> Sequence[Value]:
    """Positions that are copies of one another keep one label; new positions are told apart."""
    rest = {name: item for name, item in call.args.items() if name != "self"}
    move = functools.partial(_run, call.op, rest)
    return [call.met(_all_moved(call, call.value("self"), move))]


def _run(op: OpOverload, rest: Mapping[str, Any], labels: Tensor) -> Tensor:
    moved: Tensor = op(labels.contiguous(), **rest)
    return moved


@rule("constant_pad_nd")
def pad(call: Call) -> Sequence[Value]:
    """New positions hold one number; they are told apart from the old ones, not pinned."""
    value, padding = call.value("self"), list(call.args["pad"])
    last = call.rank - 1
    padded = {last - index // 2 for index, count in enumerate(padding) if count}
    fields: list[Field] = []
    for item in call.materialised(value, padded):
        if not isinstance(item, Labels) or not set(item.axes) & padded:
            fields += call.coarsen(item, set(range(call.rank)) - padded)
            continue
        mine = [0 if last - i // 2 not in item.axes else p for i, p in enumerate(padding)]
        fields += call.chosen(torch.constant_pad_nd(item.values, mine, NONE), item)
    for axis in padded:
        fields += part_of_axis(
            call.shape, axis, _old_places(value, call.shape, axis, padding), "padding"
        )
    return [call.join(fields)]


def _old_places(value: Value, shape: Sequence[int], axis: int, padding: Sequence[int]) -> Tensor:
    """Where along an axis the old positions are."""
    before = padding[2 * (len(shape) - 1 - axis)]
    start, end = max(before, 0), max(before, 0) + value.shape[axis] + min(before, 0)
    return torch.arange(shape[axis])[start : min(end, shape[axis])]


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
    on_each = [onto_axes(fields, [*others, axis], ndim) for axis in (rows, columns)]
    placed = [item for pair in zip(*on_each, strict=True) for item in pair]
    made = call.fresh(call.shape[rows])
    units = [Labels(made, (0,), injective=True)] if len(made) > 1 else []
    placed += [item for axis in (rows, columns) for item in onto_axes(units, [axis], ndim)]
    return [call.join(placed)]


@rule("tril", "triu", "tril_", "triu_")
def triangle(call: Call) -> Sequence[Value]:
    """A mask over the last two axes."""
    mask = pinned_value(call.shape, f"mask by position of {call.op}").fields
    over = [item for item in mask if item.axes[0] >= len(call.shape) - 2]
    return [call.join([*call.value("self").fields, *over])]


_PATCHES, _OF_PATCHES = (
    pattern("... c !h !w -> ... (c !k) !l"),
    pattern("... (c !k) !l -> ... c !h !w"),
)


@rule("im2col")
def unfold_image(call: Call) -> Sequence[Value]:
    """Patches of an image, one after the other."""
    return [call.follow(_PATCHES, call.value("self"))]


@rule("col2im")
def fold_image(call: Call) -> Sequence[Value]:
    """Adds up the patches that `im2col` cuts out."""
    return [call.follow(_OF_PATCHES, call.value("self"), c=call.shape[-3])]


@rule("glu")
def gated_linear_unit(call: Call) -> Sequence[Value]:
    """The first half of an axis, times the sigmoid of the second."""
    value = call.value("self")
    dim = call.args["dim"]
    halves = call.view(value, lambda labels: labels.chunk(2, dim), 2)
    return [call.join([item for half in halves for item in half])]
