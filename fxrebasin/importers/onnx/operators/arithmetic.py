"""Element by element: arithmetic, comparisons, logic."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.registry import (
    Function,
    UnsupportedError,
    number,
    operator,
    operators,
    whole,
)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Of any number of tensors, one after the other."""
    return lambda *values: reduce(function, values)


operators(
    {
        **{name: getattr(torch, name.lower()) for name in ("Abs", "Neg", "Exp", "Log", "Sqrt")},
        **{name: getattr(torch, name.lower()) for name in ("Floor", "Ceil", "Round", "Sign")},
        **{name: getattr(torch, name.lower()) for name in ("Sin", "Cos", "Tan", "Asin", "Acos")},
        **{name: getattr(torch, name.lower()) for name in ("Atan", "Sinh", "Cosh", "Tanh")},
        **{name: getattr(torch, name.lower()) for name in ("Asinh", "Acosh", "Atanh", "Erf")},
        **{name: getattr(torch, name.lower()) for name in ("Reciprocal", "Sigmoid", "IsNaN")},
        **{name: getattr(torch, name.lower()) for name in ("Add", "Sub", "Mul", "Where")},
        "Not": torch.logical_not,
        "And": torch.logical_and,
        "Or": torch.logical_or,
        "Xor": torch.logical_xor,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "Less": torch.lt,
        "GreaterOrEqual": torch.ge,
        "LessOrEqual": torch.le,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "BitwiseNot": torch.bitwise_not,
        "Max": _folded(torch.maximum),
        "Min": _folded(torch.minimum),
        "Sum": _folded(torch.add),
        "Mean": lambda *values: reduce(torch.add, values) / len(values),
        "Det": torch.det,
        "Identity": lambda value: value,
    }
)


@operator("Div")
def divide(left: Tensor, right: Tensor) -> Tensor:
    """Whole numbers are cut off towards zero."""
    exact = left.is_floating_point() or left.is_complex()
    return left / right if exact else torch.div(left, right, rounding_mode="trunc")


@operator("Pow")
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
def modulo(left: Tensor, right: Tensor, *, fmod: int = 0) -> Tensor:
    """The sign is that of the divisor, with fmod that of the dividend."""
    return torch.fmod(left, right) if fmod else torch.remainder(left, right)


@operator("BitShift")
def shift(left: Tensor, right: Tensor, *, direction: str) -> Tensor:
    """By as many bits as the second tensor says."""
    towards = {"LEFT": torch.bitwise_left_shift, "RIGHT": torch.bitwise_right_shift}
    return towards[direction](left, right)


@operator("IsInf")
def infinite(value: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Of both signs, or of one."""
    if detect_negative and detect_positive:
        return torch.isinf(value)
    none = torch.zeros_like(value, dtype=torch.bool)
    one = torch.isneginf if detect_negative else torch.isposinf
    return one(value) if detect_negative or detect_positive else none


@operator("Clip", reads=(1, 2))
def clip(
    value: Tensor,
    least: Tensor | None = None,
    most: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Bounds are attributes before opset 11; where they cross, the upper one holds."""
    low, high = (min if least is None else least), (max if most is None else most)
    if low is not None:
        value = torch.clamp(value, min=number(low))
    return value if high is None else torch.clamp(value, max=number(high))


@operator("Cast")
def cast(value: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To another type; how numbers of 8 bits are rounded does not matter here."""
    return _cast(value, dtype_of(to))


@operator("CastLike")
def cast_like(value: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """To the type of another tensor."""
    return _cast(value, like.dtype)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        raise UnsupportedError("only tensors can be cast")
    return value.to(dtype)


@operator("BitCast")
def bit_cast(value: Tensor, *, to: int) -> Tensor:
    """The same bits as another type."""
    return value.view(dtype_of(to))


@operator("CumSum", reads=(1,))
def cumulative_sum(value: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all up to each position, with or without itself."""
    return _cumulative(value, whole(axis), torch.cumsum, 0, bool(exclusive), bool(reverse))


@operator("CumProd", reads=(1,))
def cumulative_product(
    value: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0
) -> Tensor:
    """Products of all up to each position, with or without itself."""
    return _cumulative(value, whole(axis), torch.cumprod, 1, bool(exclusive), bool(reverse))


def _cumulative(
    value: Tensor,
    axis: int,
    function: Callable[[Tensor, int], Tensor],
    start: int,
    exclusive: bool,
    reverse: bool,
) -> Tensor:
    value = value.flip(axis) if reverse else value
    if exclusive:
        first = torch.full_like(value.narrow(axis, 0, 1), start)
        value = torch.cat([first, value.narrow(axis, 0, value.shape[axis] - 1)], axis)
    found = function(value, axis).to(value.dtype)
    return found.flip(axis) if reverse else found
