"""Sums, means, norms and extrema over axes; scans and searches, which depend on order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fxrebasin.passes.fields.fields import Grouped, Routing, Stage, Value, pinned_value
from fxrebasin.passes.fields.moving import pick_axes
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.numbers import found_at
from fxrebasin.passes.rules.registry import block, overloads, rule


def _reduced_axes(call: Call, value: Value) -> set[int]:
    """An empty list of axes stands for all of them, or for none, depending on the operator."""
    ndim, dims = len(value.shape), call.args.get("dim")
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set() if dims is not None and call.shape == value.shape else set(range(ndim))
    return {dim % max(ndim, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}


def _reduce(call: Call, value: Value, axes: set[int]) -> list[Value]:
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    fields = tuple(call.reduce(value, kept))
    left = tuple(pick_axes(item, kept) for item in fields)
    return [
        Value(tuple(out.shape), fields if out.ndim == len(value.shape) else left)
        for out in call.outputs
    ]


@rule(
    *("sum", "mean", "amax", "amin", "aminmax", "prod", "var", "std", "var_mean", "std_mean"),
    *("nansum", "logsumexp", "linalg_vector_norm", "norm", "any", "all", "max.default"),
    *("min.default", "count_nonzero", "median.default", "nanmedian.default"),
    *("_is_all_true", "_is_any_true"),
)
def symmetric_reduction(call: Call) -> Sequence[Value]:
    """The result does not depend on the order of the elements that are reduced."""
    value = call.value("self")
    return _reduce(call, value, _reduced_axes(call, value))


@rule("mse_loss", "smooth_l1_loss", "huber_loss")
def loss(call: Call) -> Sequence[Value]:
    """Differences at each position, or one number for all of them."""
    values = [call.value("self"), call.value("target")]
    shape = torch.broadcast_shapes(*(value.shape for value in values))
    met = call.join((f for value in values for f in call.broadcast(value, len(shape))), shape)
    return [met] if call.args["reduction"] == 0 else _reduce(call, met, set(range(len(shape))))


@rule("argmax")
def position_of_largest(call: Call) -> Sequence[Value]:
    """Gives back an index along the reduced axis: what reads it may pin that."""
    return _position(call, largest=True)


@rule("argmin")
def position_of_smallest(call: Call) -> Sequence[Value]:
    """Where the smallest number is, as where the largest is."""
    return _position(call, largest=False)


def _position(call: Call, largest: bool) -> list[Value]:
    value = call.value("self")
    axes = _reduced_axes(call, value)
    if call.args["dim"] is None:
        return _reduce(call, call.pin_axes(value, axes, "order-dependent operator"), axes)
    (axis,) = axes
    return [found_at(call, axis, lambda v: _reduce(call, v, axes)[0], largest=largest)]


@rule("max.dim")
def largest_and_position(call: Call) -> Sequence[Value]:
    """The value does not depend on order; its index does, if anything reads it."""
    return _value_and_position(call, largest=True)


@rule("min.dim", "median.dim", "nanmedian.dim", "mode", "kthvalue")
def value_and_position(call: Call) -> Sequence[Value]:
    """The same, of searches for another value than the largest."""
    return _value_and_position(call, largest=False)


def _value_and_position(call: Call, largest: bool) -> list[Value]:
    value = call.value("self")
    axes = _reduced_axes(call, value)
    (axis,) = axes
    index = found_at(call, axis, lambda v: _reduce(call, v, axes)[1], largest=largest)
    return [_reduce(call, value, axes)[0], index]


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "cumsum_")
def scan(call: Call) -> Sequence[Value]:
    """Runs along an axis in order, and everything there depends on each other.

    Units along it stay: each sum holds those before it, in an order that a table may give to every
    row another one of.
    """
    value = call.value("self")
    ndim = len(value.shape)
    dim = call.args.get("dim", -1) % max(ndim, 1)
    reason = f"order-dependent operator of {call.op}"
    if ndim and value.grouped is None:
        value = call.pin_axes(value, [dim], "order-dependent operator")
    order = pinned_value(value.shape, reason).fields
    fields = call.with_statistics(value, set(range(ndim)) - {dim})
    met = call.join([*fields, *(item for item in order if item.axes == (dim,))], value.shape)
    grouped = value.grouped
    if grouped is not None and call.op is torch.ops.aten.cumsum.default:
        ends = grouped.stage is Stage.COUNTS and ndim == 1
        grouped = replace(grouped, stage=Stage.ENDS) if ends else None
        return [replace(met, grouped=grouped)]
    return [Value(tuple(out.shape), met.fields) for out in call.outputs]


@rule("topk", "sort", "argsort")
def ranked(call: Call) -> Sequence[Value]:
    """The values of an axis by rank, which do not depend on their order there, and their indices.

    The indices do depend on it, and so do values that are returned unsorted.
    """
    grouped, value = _groups(call), call.value("self")
    dim, order = call.args["dim"] % max(call.rank, 1), "order-dependent operator"

    def ranked_by(searched: Value) -> Value:
        others = set(range(call.rank)) - {dim}
        return Value(call.shape, (*call.reduce(searched, others), *call.positions([dim], order)))

    def pinned() -> Value:
        return ranked_by(call.pin_axes(value, [dim], order))

    in_order = bool(call.args.get("sorted", True))
    largest = bool(call.args.get("largest", False))
    index = found_at(call, dim, ranked_by, largest=largest, may_be_named=in_order)
    values = replace(ranked_by(value), when_read=None if in_order else pinned, grouped=grouped)
    return [values, index] if len(call.outputs) > 1 else [index]


_SORTING = frozenset(overloads("sort"))


def _groups(call: Call) -> Grouped | None:
    """Sorting numbers that name units puts what moves along into groups, one for each unit."""
    rising = call.op in _SORTING and not call.args["descending"]
    named = call.named(call.args["self"]) if rising else None
    if named is None or named.names is None or len(named.shape) != 1:
        return None
    return Grouped(Routing(call.origin), named.names.values.numel(), Stage.NUMBERS)


@rule("bucketize.Tensor", "searchsorted.Tensor")
def count_below(call: Call) -> Sequence[Value]:
    """Of each number, how many of a sorted axis are below it."""
    value, names = call.value("self"), ("boundaries", "sorted_sequence", "sorter")
    fields = list(value.fields)
    for sorted_axis in (call.optional(name) for name in names):
        if sorted_axis is not None:
            leading = range(len(sorted_axis.shape) - 1)
            pinned = call.pin_axes(sorted_axis, [-1], "order-dependent operator")
            fields += call.reduce(pinned, leading) if leading else []
    return [call.join(fields)]


block(
    "its result depends on the values in an order that no permutation preserves",
    *("nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount"),
    *("searchsorted.Scalar", "bucketize.Scalar", "where.default", "nonzero_static"),
)
