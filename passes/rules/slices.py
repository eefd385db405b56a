"""Operators that keep apart rows which were given slices of a stack by data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.passes.fields.fields import Choice, Sliced, Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.fields.slices import (
    broadcast_slices,
    has_matrices,
    one_row,
)
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.experts import grouped_of_slices
from fxrebasin.passes.rules.movement import gated_linear_unit, reshape, same, view
from fxrebasin.passes.rules.numbers import copied
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.reduction import symmetric_reduction
from fxrebasin.passes.rules.registry import RULES, overloads
from fxrebasin.running.operators import viewed_by

SlicedOperands: TypeAlias = Mapping[int, Sliced]
"""By the identity of a tensor argument, what its rows hold."""

_Rule: TypeAlias = Callable[[Call, SlicedOperands], "list[Value] | None"]

_PRODUCTS = pattern("e b n k, e b k m -> e b n m")


def follow_slices(call: Call, given: SlicedOperands) -> list[Value] | None:
    """The outputs of an operator that looks at each row by itself; None of any other.

    Args:
        call: of the operator.
        given: operands whose rows were computed with slices of stacks.
    """
    choices = {item.choice for item in given.values()}
    if len(choices) != 1 or not any(map(has_matrices, given.values())):
        return None
    return FOLLOWING[call.op](call, given)


def _inner(call: Call, given: SlicedOperands, rows: Sequence[int], **changes: int) -> Call:
    """The call on one row of each slice.

    Args:
        call: of the operator.
        given: operands whose rows were computed with slices.
        rows: the axes of rows in the operands, counted from that of most axes.
        changes: of arguments.
    """
    rank = max(tensor.ndim for tensor in call.tensors())

    def lookup(tensor: Tensor) -> Value:
        found = given.get(id(tensor))
        if found is not None:
            return broadcast_slices(found, rank)
        return call.of_any_row(call.lookup(tensor), rows, rank)

    return replace(call, args={**call.args, **changes}, lookup=lookup)


def _rows_of(call: Call, given: SlicedOperands) -> tuple[int, ...] | None:
    """The axes of rows, if these are the same in all operands after a broadcast."""
    rank = max(tensor.ndim for tensor in call.tensors())
    found = {
        tuple(axis + rank - tensor.ndim for axis in given[id(tensor)].axes)
        for tensor in call.tensors()
        if id(tensor) in given
    }
    return found.pop() if len(found) == 1 else None


def _onto(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.int8, device="meta")


def _made(
    call: Call, choice: Choice, rows: Sequence[tuple[int, ...]], values: Sequence[Value]
) -> list[Value]:
    """The outputs, of what they hold for one row of each slice."""
    return [
        call.deferred(Sliced(choice, axes, value, True), out.shape)
        for out, axes, value in zip(call.outputs, rows, values, strict=True)
    ]


def _by_element(call: Call, given: SlicedOperands) -> list[Value] | None:
    """Axes meet after broadcasting."""
    rows = _rows_of(call, given)
    if rows is None or any(tuple(out.shape) != call.shape for out in call.outputs):
        return None
    choice = next(iter(given.values())).choice
    outputs = [_onto(one_row(out.shape, rows, choice.count)) for out in call.outputs]
    inner = replace(_inner(call, given, rows), outputs=outputs)
    return _made(call, choice, [rows] * len(outputs), pointwise(inner))


def _products(call: Call, given: SlicedOperands) -> list[Value] | None:
    """Products of a matrix for each row."""
    if _rows_of(call, given) != (0,):
        return None
    choice = next(iter(given.values())).choice
    inner = _inner(call, given, (0,))
    shape = one_row(call.shape, (0,), choice.count)
    operands = [inner.value(name) for name in ("self", "mat2")]
    return _made(call, choice, [(0,)], [call.follow(_PRODUCTS, *operands, shape=shape)])


def _grouped(call: Call, given: SlicedOperands) -> list[Value] | None:
    """Products of rows in groups with the matrix of each group's expert."""
    plain = call.optional("bias") is None and call.args["self"].ndim == 2
    rows = given.get(id(call.args["self"]))
    if not plain or rows is None or len(given) > 1 or call.args["mat2"].ndim != 3:
        return None
    found = grouped_of_slices(call, rows)
    return None if found is None else [found]


def _reduced(call: Call, given: SlicedOperands) -> list[Value] | None:
    """Sums, and the like, over axes along which no rows lie."""
    (sliced,) = given.values()
    ndim, dims = call.args["self"].ndim, call.args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    over = {dim % ndim for dim in dims or ()}
    if not over or over & set(sliced.axes):
        return None
    left = [axis for axis in range(ndim) if axis not in over]
    kept = call.rank == ndim
    rows = sliced.axes if kept else tuple(left.index(axis) for axis in sliced.axes)
    count = sliced.choice.count
    outputs = [_onto(one_row(out.shape, rows, count)) for out in call.outputs]
    args = {**call.args, "dim": [1 + axis for axis in sorted(over)]}
    inner = replace(_inner(call, given, sliced.axes), args=args, outputs=outputs)
    return _made(call, sliced.choice, [rows] * len(outputs), symmetric_reduction(inner))


def _gated(call: Call, given: SlicedOperands) -> list[Value] | None:
    """Two halves of an axis along which no rows lie."""
    (sliced,) = given.values()
    dim = call.args["dim"] % call.rank
    if dim in sliced.axes:
        return None
    outputs = [_onto(one_row(call.shape, sliced.axes, sliced.choice.count))]
    inner = replace(_inner(call, given, sliced.axes, dim=1 + dim), outputs=outputs)
    return _made(call, sliced.choice, [sliced.axes], gated_linear_unit(inner))


def _moved(call: Call, given: SlicedOperands) -> list[Value] | None:
    """A copy, or a view that is made at once."""
    if len(call.outputs) != 1:
        return None
    (sliced,) = given.values()
    shapes = tuple(call.args["self"].shape), call.shape
    rest = {name: item for name, item in call.args.items() if name != "self"}
    ways = Ways(call.reshape_slices, call.view_slices)
    found = moved_slices(ways, sliced, *shapes, call.op, lambda tensor: call.op(tensor, **rest))
    return None if found is None else [call.deferred(found, call.shape)]


@dataclass(frozen=True)
class Ways:
    """How rows are followed through operators that move data.

    Args:
        reshape: the rows, and the shapes of the tensor before and after.
        view: the rows, the shape of the tensor, and the operator.
    """

    reshape: Callable[[Sliced, Sequence[int], Sequence[int]], Sliced | None]
    view: Callable[[Sliced, Sequence[int], Callable[[Tensor], Tensor]], Sliced | None]


def moved_slices(
    ways: Ways,
    sliced: Sliced,
    before: Sequence[int],
    after: Sequence[int],
    op: OpOverload,
    move: Callable[[Tensor], Tensor],
) -> Sliced | None:
    """Rows after an operator that moves data within them; None of any other.

    Args:
        ways: to follow rows.
        sliced: what rows hold.
        before: the shape of the operand.
        after: that of the output.
        op: the operator.
        move: the operator with its arguments.
    """
    rule = RULES.get(op)
    if rule in (same, copied):
        return sliced
    if rule is reshape:
        return ways.reshape(sliced, before, after)
    is_view = rule is view and viewed_by(op)
    return ways.view(sliced, before, move) if is_view else None


_BY_RULE: dict[object, _Rule] = {
    pointwise: _by_element,
    symmetric_reduction: _reduced,
    gated_linear_unit: _gated,
    **dict.fromkeys((view, reshape, same, copied), _moved),
}

FOLLOWING: dict[OpOverload, _Rule] = {
    op: _BY_RULE[rule] for op, rule in RULES.items() if rule in _BY_RULE
}
"""Operators that keep rows apart, as long as their arguments do."""

FOLLOWING |= dict.fromkeys(overloads("bmm.default"), _products)
FOLLOWING |= dict.fromkeys(overloads("_grouped_mm"), _grouped)
