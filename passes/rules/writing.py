"""Writes to positions that indices name: scatter, index_add, index_put and their kin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fxrebasin.labels import Field, Value, place, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.registry import Call, block, pin_everything, rule

_CHOSEN = "position chosen by index"


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_")
def write_slices(call: Call) -> Sequence[Value]:
    """Slices of an axis are written to; the other axes are those of the source."""
    dim = call.args["dim"] % max(len(call.shape), 1)
    call.pin_axes(call.value("index"), [0], _CHOSEN)
    source = call.args.get("source", call.args.get("value"))
    written = [call.lookup(source)] if isinstance(source, Tensor) and source.ndim else []
    return [_written(call, [call.value("self"), *written], dim)]


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(call: Call) -> Sequence[Value]:
    """Elements are written to along one axis; along the others everything is aligned."""
    dim = call.args["dim"] % max(len(call.shape), 1)
    source = call.args.get("src")
    operands = [call.value(name) for name in ("self", "index")]
    operands += [call.lookup(source)] if isinstance(source, Tensor) else []
    shapes = {(*value.shape[:dim], *value.shape[dim + 1 :]) for value in operands}
    if len(shapes) > 1:
        return pin_everything("a write to a part of the other axes")(call)
    return [_written(call, operands, dim)]


def _written(call: Call, operands: Iterable[Value], dim: int) -> Value:
    """Operands of one rank meet everywhere but along the axis whose positions are chosen."""
    ndim = len(call.shape)
    others = set(range(ndim)) - {dim}
    fields: list[Field] = []
    for value in operands:
        fields += call.ledger.reduce(call.pin_axes(value, [dim], _CHOSEN), others)
    if ndim and call.shape[dim] > 1:
        fields.append(positions(ndim, dim, call.shape[dim], f"{_CHOSEN} of {call.op}"))
    return call.join(fields)


@rule("index_put", "index_put_", "_unsafe_index_put")
def index_put(call: Call) -> Sequence[Value]:
    """The indexed axes are pinned; the others are the last axes of what is written."""
    value, written = call.value("self"), call.value("values")
    indices = list(call.args["indices"])
    mask = indices[0] if len(indices) == 1 else None
    if mask is not None and mask.dtype == torch.bool and call.args["values"].numel() == 1:
        aligned = call.lookup(mask)
        target = range(mask.ndim)
        return [
            call.join(
                [*value.fields, *(place(f, target, len(value.shape)) for f in aligned.fields)]
            )
        ]
    if not indices or any(index is None for index in indices):
        return pin_everything("a write to axes behind others")(call)
    for index in indices:
        call.pin_axes(call.lookup(index), range(index.ndim), _CHOSEN)
    ndim = len(value.shape)
    indexed = sum(index.ndim if index.dtype == torch.bool else 1 for index in indices)
    rest = range(indexed, ndim)
    fields = call.ledger.reduce(call.pin_axes(value, range(indexed), _CHOSEN), rest)
    offset = len(written.shape) - len(rest)
    kept = [axis for axis in range(len(written.shape)) if axis >= offset]
    source = call.pin_axes(written, range(max(offset, 0)), _CHOSEN)
    for item in call.ledger.reduce(source, kept):
        fields.append(
            place(pick_axes(item, kept), [axis - offset + indexed for axis in kept], ndim)
        )
    reason = f"{_CHOSEN} of {call.op}"
    fields += [
        positions(ndim, axis, call.shape[axis], reason)
        for axis in range(indexed)
        if call.shape[axis] > 1
    ]
    return [call.join(fields)]


block(
    "it deals out values in the order of positions, which depends on data",
    *("masked_scatter", "masked_scatter_", "put", "put_", "take"),
)
