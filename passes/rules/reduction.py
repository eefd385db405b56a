"""Sums, means, norms and extrema over axes; scans and searches, which depend on order."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.labels import Value, pinned_value, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.normalization import with_statistics
from fxrebasin.passes.rules.registry import Call, block, rule


def _reduced_axes(call: Call, value: Value) -> set[int]:
    """An empty list of axes stands for all of them, or for none, as the operator likes."""
    ndim, dims = len(value.shape), call.args.get("dim")
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set() if dims is not None and call.shape == value.shape else set(range(ndim))
    return {dim % max(ndim, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}


def _reduce(call: Call, value: Value, axes: set[int]) -> list[Value]:
    kept = [axis for axis in range(len(value.shape)) if axis not in axes]
    fields = call.ledger.reduce(value, kept)
    results = []
    for out in call.outputs:
        if out.ndim != len(value.shape):
            results.append(Value(tuple(out.shape), tuple(pick_axes(f, kept) for f in fields)))
        else:
            results.append(Value(tuple(out.shape), tuple(fields)))
    return results


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


@rule("argmax", "argmin")
def position(call: Call) -> Sequence[Value]:
    """Gives back an index along the reduced axis, which thereby cannot be permuted."""
    value = call.value("self")
    axes = _reduced_axes(call, value)
    return _reduce(call, call.pin_axes(value, axes, "order-dependent operator"), axes)


@rule("max.dim", "min.dim", "median.dim", "nanmedian.dim", "mode", "kthvalue")
def value_and_position(call: Call) -> Sequence[Value]:
    """The value does not depend on order; its index does, if anything reads it."""
    value = call.value("self")
    axes = _reduced_axes(call, value)
    found, index = _reduce(call, value, axes)
    return [found, Value(index.shape, index.fields, lambda: position(call)[1])]


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "cumsum_")
def scan(call: Call) -> Sequence[Value]:
    """Runs along an axis in order, and everything there depends on each other."""
    value = call.value("self")
    ndim = len(value.shape)
    dim = call.args.get("dim", -1) % max(ndim, 1)
    order = pinned_value(value.shape, f"order-dependent operator of {call.op}").fields
    fields = with_statistics(call, value, set(range(ndim)) - {dim})
    joined = call.ledger.join([*fields, *(item for item in order if item.axes == (dim,))])
    return [Value(tuple(out.shape), joined) for out in call.outputs]


@rule("topk", "sort", "argsort")
def ranked(call: Call) -> Sequence[Value]:
    """The values of an axis by rank: they do not depend on order, their indices do.

    Nor do the values, unless they come in any order.
    """
    value = call.value("self")
    ndim = len(value.shape)
    dim = call.args["dim"] % max(ndim, 1)
    others = set(range(ndim)) - {dim}
    order = f"order-dependent operator of {call.op}"
    ranks = [positions(ndim, dim, call.shape[dim], order)] if ndim and call.shape[dim] > 1 else []

    def pinned() -> Value:
        held = call.pin_axes(value, [dim], "order-dependent operator")
        return Value(call.shape, (*call.ledger.reduce(held, others), *ranks))

    fields = (*call.ledger.reduce(value, others), *ranks)
    index = Value(call.shape, fields, pinned)
    values = Value(call.shape, fields, None if call.args.get("sorted", True) else pinned)
    return [values, index] if len(call.outputs) > 1 else [index]


@rule("bucketize.Tensor", "searchsorted.Tensor")
def count_below(call: Call) -> Sequence[Value]:
    """Of each number, how many of a sorted axis are below it."""
    value, names = call.value("self"), ("boundaries", "sorted_sequence", "sorter")
    fields = list(value.fields)
    for sorted_axis in (call.optional(name) for name in names):
        if sorted_axis is not None:
            leading = range(len(sorted_axis.shape) - 1)
            pinned = call.pin_axes(sorted_axis, [-1], "order-dependent operator")
            fields += call.ledger.reduce(pinned, leading) if leading else []
    return [call.join(fields)]


block(
    "its result depends on the values in an order that no permutation preserves",
    *("nonzero", "masked_select", "_unique2", "unique_consecutive", "bincount"),
    *("histc", "searchsorted.Scalar", "bucketize.Scalar", "where.default", "nonzero_static"),
)
