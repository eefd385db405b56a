"""Numbers that name units: the index of the largest, of the nearest, of the best few.

Permuting the units along an axis renames them: a search along the axis gives back other numbers,
and on an axis whose units are permuted alike, these stand for what the old ones did. Looked up
there or compared with all positions there, the numbers pin nothing. Anything else that reads them
pins the units, and so does a search that may find several equal numbers: it gives back the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Labels, Value, onto_axes
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.registry import overloads, rule

LOOKING_UP = frozenset(
    overload
    for name in (
        *("embedding", "index_select", "gather", "index.Tensor", "_unsafe_index.Tensor"),
        *("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce"),
        *("scatter_reduce_", "eq.Tensor", "clone", "_to_copy", "sort"),
        *("_embedding_bag", "_embedding_bag_forward_only"),
    )
    for overload in overloads(name)
)
"""Operators whose rules ask whether the numbers that they read are names of units."""

_WHOLE = (torch.int32, torch.int64)
_EXACT = (*_WHOLE, torch.float32, torch.float64)


def found_at(
    call: Call, axis: int, results: Callable[[Value], Value], may_be_named: bool = True
) -> Value:
    """The numbers that a search along an axis of `self` gives back.

    Args:
        call: of the search.
        axis: of the operand.
        results: the value of the numbers, from that of the operand.
        may_be_named: whether they hang on nothing but the values along the axis.
    """
    value = call.value("self")
    reason = "order-dependent operator"
    where = call.where
    units: list[Labels] = []

    def read() -> Value:
        for item in units:
            call.pin_units(item, reason)
        return results(call.pin_axes(value, [axis], reason))

    def named() -> Value:
        made = Labels(call.fresh(value.shape[axis]), (0,), injective=True)
        units.append(made)
        call.note(
            f"{where} chooses among units that may be exchanged, and takes "
            "the first of equal values: their order counts where parameters are equal, as zeros are"
        )
        met = call.join([*value.fields, *onto_axes([made], [axis], len(value.shape))], value.shape)
        return replace(results(met), when_read=read, names=made)

    several = bool(value.shape) and value.shape[axis] > 1
    apart = may_be_named and several and call.apart(call.args["self"], axis, _is_for_largest(call))
    return replace(results(value), when_read=read, when_named=named if apart else None)


def _is_for_largest(call: Call) -> bool:
    name = call.op._schema.name.removeprefix("aten::")
    return name in ("argmax", "max") or (name == "topk" and bool(call.args["largest"]))


def looked_up(call: Call, value: Value, axis: int, index: Tensor, reason: str) -> Value:
    """A tensor whose positions along an axis are named by an index, where the two meet.

    Args:
        call: of the look-up.
        value: of the tensor.
        axis: of the tensor.
        index: the numbers.
        reason: why the axis is pinned, where they are no names of its units.
    """
    units = units_on(call.named(index), value.shape[axis])
    if units is None:
        call.lookup(index)
        return call.pin_axes(value, [axis], reason)
    return call.join([*value.fields, *onto_axes([units], [axis], len(value.shape))], value.shape)


def numbers_in(call: Call, index: Tensor) -> Value:
    """The value of an index, after the tensor that it chooses from met its numbers."""
    return call.named(index) or call.lookup(index)


def units_on(named: Value | None, size: int) -> Labels | None:
    """The units that numbers name, along an axis of some size; None if they may not fit.

    Positions beyond those that can be named are nobody's.
    """
    units = None if named is None else named.names
    if units is None or units.values.numel() > size:
        return None
    beyond = rigid_labels(torch.arange(size - units.values.numel()))
    return Labels(torch.cat([units.values, beyond]), (0,), injective=True)


@rule("clone", "_to_copy")
def copied(call: Call) -> Sequence[Value]:
    """The same numbers at the same positions."""
    found = call.named(call.args["self"])
    if found is None or call.outputs[0].dtype not in _WHOLE:
        value = call.value("self")
        grouped = value.grouped if call.outputs[0].dtype in _EXACT else None
        return [Value(call.shape, value.fields, grouped=grouped)]
    plain = Value(call.shape, found.fields)

    def read() -> Value:
        if found.when_read is not None:
            found.when_read()
        return plain

    return [replace(plain, when_read=read, names=found.names)]


@rule("eq.Tensor")
def compared(call: Call) -> Sequence[Value]:
    """Numbers that are compared with all positions on an axis: a row of zeros and a one each."""
    ndim = len(call.shape)
    for one, other in (("self", "other"), ("other", "self")):
        named = call.named(call.args[one])
        axis = None if named is None else _counting(call, call.args[other])
        units = None if axis is None else units_on(named, call.shape[axis])
        if named is not None and axis is not None and units is not None:
            fields = call.broadcast(named, ndim)
            if not any(axis in item.axes for item in fields):
                return [call.join([*fields, *onto_axes([units], [axis], ndim)])]
    return pointwise(call)


def _counting(call: Call, tensor: Tensor) -> int | None:
    """The axis of the output along which a constant counts from 0 on; None if it does not."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    known = call.constant(tensor) if len(axes) == 1 else None
    if known is None or not torch.equal(known.reshape(-1).cpu(), torch.arange(known.numel())):
        return None
    return len(call.shape) - tensor.ndim + axes[0]
