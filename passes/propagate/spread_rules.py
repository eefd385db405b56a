"""How the numbers that an operator makes differ, from how those of its operands do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxrebasin.passes.propagate.spreads import (
    Along,
    Later,
    Spread,
    Zero,
    along_all,
    sources_of,
    unknown,
)
from fxrebasin.passes.rules.registry import overloads


@dataclass(frozen=True)
class _Argument:
    """What rules look at in a tensor, which this does not keep alive."""

    ndim: int
    dtype: torch.dtype
    number: int


Operand: TypeAlias = Callable[[str], Spread]
_Rule: TypeAlias = Callable[[Mapping[str, Any], Operand, Sequence[int]], Spread]


def of_result(
    func: Any,
    bound: Mapping[str, Any],
    operands: Sequence[Later],
    shape: Sequence[int],
    pointwise: bool,
) -> Later:
    """How the numbers of an operator's first output differ.

    Args:
        func: the operator.
        bound: all of its arguments.
        operands: what is known of all tensors among them, in their order.
        shape: of the output.
        pointwise: whether each number follows from those at its place.
    """
    if func not in _RULES:
        return Later(lambda found: unknown(shape, found, pointwise), operands)
    arguments: dict[str, Any] = {}
    number = 0
    for name, value in bound.items():
        single = isinstance(value, Tensor)
        arguments[name] = _Argument(value.ndim, value.dtype, number) if single else value
        number += 1 if single else _count_tensors(value)
    return Later(lambda found: _spread_of(func, arguments, found, shape), operands)


def _count_tensors(value: Any) -> int:
    found = value if isinstance(value, list | tuple) else ()
    return sum(isinstance(item, Tensor) for item in found)


def _spread_of(
    func: Any, bound: Mapping[str, Any], operands: Sequence[Spread], shape: Sequence[int]
) -> Spread:
    """How the numbers of the first output of an operator in the table differ.

    Args:
        func: the operator.
        bound: all of its arguments.
        operands: what is known of those that are tensors.
        shape: of the output.
    """
    rule = _RULES[func]

    def named(name: str) -> Spread:
        value = bound.get(name)
        if isinstance(value, _Argument):
            found = operands[value.number]
            axes = found.axes if rule in _AWARE else map(_plain, found.axes)
            before = (Along.SAME,) * (len(shape) - len(found.axes))
            return replace(found, axes=(*before, *axes))
        return Spread((Along.SAME,) * len(shape), Zero.NEVER if value else Zero.MAY)

    return replace(rule(bound, named, shape), sources=sources_of(operands))


def _plain(along: Along) -> Along:
    return Along.FLAT if along in (Along.TOP, Along.TURNED) else along


def _added(first: Spread, second: Spread) -> Spread:
    pairs = zip(first.axes, second.axes, strict=True)
    axes = tuple(Along.FLAT if Along.FLAT in pair else max(pair) for pair in pairs)
    zeros = (first.zero, second.zero)
    return Spread(axes, Zero.CLIPPED if Zero.CLIPPED in zeros else min(zeros))


def _times(along: Along, zero: Zero) -> Along:
    """Numbers that are all multiplied by the same ones."""
    return min(along, Along.SMOOTH) if zero is not Zero.NEVER else along


def _multiplied(first: Spread, second: Spread) -> Spread:
    """Numbers that are multiplied by others of the same parameters may be normalised by these."""
    shared = first.sources & second.sources > 1
    axes = []
    for one, two in zip(first.axes, second.axes, strict=True):
        if Along.SAME in (one, two):
            axes.append(max(_times(one, second.zero), _times(two, first.zero)))
        else:
            axes.append(min(one, two, Along.SMOOTH if shared else Along.APART))
    return Spread(tuple(axes), max(first.zero, second.zero))


def _unary(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    """A function of each number that gives different ones for different numbers, however large."""
    return operand("self")


def _bent(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    """A smooth function of each number that is constant, once rounded, for large or small ones."""
    found = operand("self")
    return replace(found, axes=tuple(min(along, Along.FLAT) for along in found.axes))


def _sum(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    first = operand("self")
    return _added(first, operand("other")) if bound.get("alpha", 1) else unknown(shape)


def _product(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    return _multiplied(operand("self"), operand("other"))


def _quotient(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    """Vectors that are divided by lengths, which nothing but themselves made, keep directions."""
    first, second = operand("self"), operand("other")
    own = second.sources and not second.sources & ~first.sources
    if not shape or not own or (first.axes[-1], second.axes[-1]) != (Along.APART, Along.SAME):
        return _multiplied(first, second)
    found = _multiplied(first, replace(second, zero=Zero.NEVER))
    if second.sources & 1:
        return found  # products with the input may be what they were divided by
    turned = (Along.TURNED if along is Along.APART else Along.FLAT for along in first.axes[:-1])
    return replace(found, axes=(*turned, found.axes[-1]))


def _larger(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    """The larger or the smaller of two numbers each, which have no parameter in common."""
    first, second = operand("self"), operand("other")
    shared = first.sources & second.sources > 1
    if shared or first.sources < 2 or second.sources < 2:
        return unknown(shape, pointwise=True)
    axes = (
        one if one is two else min(Along.FLAT, max(one, two))
        for one, two in zip(first.axes, second.axes, strict=True)
    )
    return Spread(tuple(axes), max(first.zero, second.zero))


def _power(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    return operand("self") if bound["exponent"] else unknown(shape)


def _softmax(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    dim = bound["dim"] % max(len(shape), 1)
    axes = [min(along, Along.FLAT) for along in operand("self").axes]
    if axes and operand("self").axes[dim] is Along.APART:
        axes[dim] = Along.TOP
    return Spread(tuple(axes), Zero.NEVER)


def _log_softmax(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    dim = bound["dim"] % max(len(shape), 1)
    axes = operand("self").axes
    return Spread(
        tuple(along if axis == dim else min(along, Along.FLAT) for axis, along in enumerate(axes)),
        Zero.NEVER,
    )


def _reduction(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    ndim = bound["self"].ndim
    given = bound.get("dim")
    if bound.get("ord") == 0:  # how many are not zero
        return unknown(shape)
    dims = [given] if isinstance(given, int) else given or range(ndim)
    removed = {dim % max(ndim, 1) for dim in dims}
    before = operand("self").axes[-ndim:] if ndim else ()
    if len(shape) == ndim:
        axes = tuple(Along.SAME if axis in removed else a for axis, a in enumerate(before))
    else:
        axes = tuple(along for axis, along in enumerate(before) if axis not in removed)
    return Spread(axes, operand("self").zero)


def _contracted(along: Along, zero: Zero) -> Along:
    """Vectors that are multiplied by another one: by accident only are two products equal."""
    if along is Along.TURNED:
        return Along.APART if zero is Zero.NEVER else Along.SMOOTH
    return _times(_plain(along), zero)


def _dot(rows: Spread, matrix: Spread) -> Spread:
    """`[*batch, n, k] @ [*batch, k, m]`."""
    batch = _multiplied(
        *(replace(item, axes=tuple(map(_plain, item.axes[:-2]))) for item in (rows, matrix))
    ).axes
    along = (_contracted(rows.axes[-2], matrix.zero), _contracted(matrix.axes[-1], rows.zero))
    zero = Zero.NEVER if rows.zero is matrix.zero is Zero.NEVER else Zero.MAY
    return Spread((*batch, *along), zero)


def _matrix_product(first: str, second: str, added: str = "") -> _Rule:
    def apply(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
        product = _dot(operand(first), operand(second))
        if not added:
            return product
        scaled = bound.get("beta", 1) and bound.get("alpha", 1)
        before = operand(added)
        plain = replace(before, axes=tuple(map(_plain, before.axes)))
        return _added(plain, product) if scaled else unknown(shape)

    return apply


def _copied(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    dtype = bound.get("dtype") or bound["self"].dtype
    return operand("self") if dtype.is_floating_point else unknown(shape)


def _linear(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    value, weight = operand("input"), operand("weight")
    leading = tuple(_times(_plain(along), weight.zero) for along in value.axes[:-1])
    zero = Zero.NEVER if value.zero is weight.zero is Zero.NEVER else Zero.MAY
    product = Spread((*leading, _contracted(weight.axes[-2], value.zero)), zero)
    if bound.get("bias") is None:
        return product
    bias = operand("bias")
    return _added(product, replace(bias, axes=tuple(map(_plain, bias.axes))))


def _distance(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    if not bound["p"]:  # how many are not equal
        return unknown(shape)
    first, second = operand("x1").axes, operand("x2").axes
    batch = (min(Along.FLAT, max(pair)) for pair in zip(first[:-2], second[:-2], strict=True))
    return Spread((*batch, first[-2], second[-2]), Zero.NEVER)


def _rows(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    """Rows of a table; one for padding is zero."""
    weight = operand("weight")
    zero = weight.zero if bound["padding_idx"] < 0 else Zero.MAY
    return Spread((*along_all(Along.FLAT, shape[:-1]), weight.axes[-1]), zero)


def _normalised(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    bias = bound.get("bias")
    zero = operand("input").zero if bias is None else operand("bias").zero
    return Spread(along_all(Along.FLAT, shape), zero)


def _attended(bound: Mapping[str, Any], operand: Operand, shape: Sequence[int]) -> Spread:
    return Spread(along_all(Along.FLAT, shape), operand("value").zero)


_MM = _matrix_product("self", "mat2")
_ADDMM = _matrix_product("mat1", "mat2", "self")
_BADDBMM = _matrix_product("batch1", "batch2", "self")
_AWARE = (_copied, _linear, _MM, _ADDMM, _BADDBMM)
"""Rules that know of numbers of which only some are apart, or only as vectors."""

_TABLE: tuple[tuple[_Rule, tuple[str, ...]], ...] = (
    (
        _unary,
        ("neg", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square", "reciprocal", "asinh"),
    ),
    (
        _bent,
        (
            *("exp", "expm1", "sigmoid", "tanh", "silu", "gelu", "softplus", "mish", "erf"),
            *("log_sigmoid_forward",),
        ),
    ),
    (_sum, ("add", "sub")),
    (_product, ("mul",)),
    (_quotient, ("div.Tensor", "div.Scalar", "true_divide")),
    (_copied, ("_to_copy", "clone", "alias", "detach", "contiguous")),
    (_larger, ("maximum", "minimum")),
    (_power, ("pow.Tensor_Scalar",)),
    (_softmax, ("_softmax",)),
    (_log_softmax, ("_log_softmax",)),
    (_reduction, ("sum", "mean", "linalg_vector_norm", "logsumexp")),
    (_MM, ("mm.default", "bmm.default")),
    (_ADDMM, ("addmm.default",)),
    (_BADDBMM, ("baddbmm.default",)),
    (_linear, ("linear",)),
    (_distance, ("_cdist_forward",)),
    (_rows, ("embedding",)),
    (_normalised, ("native_layer_norm",)),
    (
        _attended,
        (
            *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
            *("scaled_dot_product_attention", "_scaled_dot_product_efficient_attention"),
        ),
    ),
)


def _in_place_too(names: Sequence[str]) -> list[str]:
    """The names, and those of the operators that do the same in place."""
    split = [name.partition(".") for name in names]
    return [*names, *(f"{packet}_{dot}{overload}" for packet, dot, overload in split)]


_RULES: dict[Any, _Rule] = {
    overload: rule
    for rule, names in _TABLE
    for name in _in_place_too(names)
    for overload in overloads(name)
}
