"""Samples of element-wise operators, most of them made from the operator's schema."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from fxrebasin.passes.rules.numbers import compared
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.registry import RULES
from tests.support.oracle.sample import (
    Operand,
    Sample,
    bools,
    complexes,
    given,
    ints,
    p,
    sample,
)

aten = torch.ops.aten

SHAPES = ((3, 4), (4,), (3, 1))

RANGES = {
    **dict.fromkeys(("acos", "asin", "atanh", "erfinv"), (-0.9, 0.9)),
    **dict.fromkeys(("logit", "special_ndtri"), (0.1, 0.9)),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "lgamma"), (0.5, 4.0)),
    **dict.fromkeys(("digamma", "polygamma", "igamma", "igammac", "pow"), (0.5, 4.0)),
    **dict.fromkeys(("float_power", "special_entr", "xlogy", "special_xlog1py"), (0.5, 4.0)),
    **dict.fromkeys(("special_zeta", "acosh"), (1.5, 4.0)),
}
INTEGERS = ("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "gcd", "lcm")
SHIFTS = ("bitwise_left_shift", "bitwise_right_shift")
TRUTHS = ("logical_not", "logical_and", "logical_or", "logical_xor")


def from_schema(overload: OpOverload) -> Sample:
    """A call with tensors of shapes that broadcast, and numbers for all other arguments."""
    packet = overload._schema.name.removeprefix("aten::").removesuffix("_")
    shapes = iter(SHAPES)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in overload._schema.arguments:
        kind = str(argument.type)
        if argument.name in ("out", "dtype"):
            continue
        if kind == "Tensor":
            value: Any = _operand(packet, argument.name, next(shapes))
        elif argument.name == "rounding_mode":
            value = "floor"
        elif argument.has_default_value():
            continue
        else:
            value = _number(packet, kind)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    return sample(overload, *args, search=False, **kwargs)


def _operand(packet: str, name: str, shape: tuple[int, ...]) -> Operand:
    if packet in INTEGERS:
        return ints(*shape)
    if packet in SHIFTS:
        return ints(*shape, low=1, high=5)
    if packet in TRUTHS or name in ("mask", "condition"):
        return bools(*shape)
    if packet in ("_conj", "real", "imag", "conj_physical", "angle", "sgn"):
        return complexes(*shape)
    if packet == "polar" and name == "abs":
        shape = (3, 4)
    low, high = RANGES.get(packet, (-2.0, 2.0))
    return p(*shape, low=low, high=high)


def _number(packet: str, kind: str) -> Any:
    if packet in (*INTEGERS, *SHIFTS, "polygamma") or kind == "int":
        return 2
    return 1.5


BY_HAND = (
    *("isinf", "isnan", "isfinite", "isneginf", "isposinf", "nan_to_num", "complex", "clamp"),
    *("clip", "where", "threshold", "ldexp", "masked_fill"),
)


def _automatic() -> list[Sample]:
    return [
        from_schema(overload)
        for overload, rule in RULES.items()
        if rule in (pointwise, compared) and _packet(overload) not in BY_HAND
    ]


def _packet(overload: OpOverload) -> str:
    return overload._schema.name.removeprefix("aten::").removesuffix("_")


def _infinite(overload: OpOverload, **options: float) -> Sample:
    """A call on finite numbers, infinities of both signs and NaN, made on the way."""

    def call(x: torch.Tensor, **options: float) -> torch.Tensor:
        bad = 1 / x.relu() - 1 / (x + 1).relu() - 1 / (1 - x).relu()
        return overload(bad, **options)

    return sample(overload, p(3, 4, low=-4.0), call=call, search=False, **options)


_INFINITE = [
    *(_infinite(aten.isinf.default), _infinite(aten.isnan.default)),
    *(_infinite(aten.isneginf.default), _infinite(aten.isposinf.default)),
    _infinite(aten.isfinite.default),
    _infinite(aten.nan_to_num.default, nan=0.5, posinf=3.0, neginf=-4.0),
    _infinite(aten.nan_to_num_.default, nan=0.5, posinf=3.0, neginf=-4.0),
]

_BOUNDED = [
    item
    for packet in (aten.clamp, aten.clamp_, aten.clip, aten.clip_)
    for item in (
        sample(packet.default, p(3, 4), -1.0, 1.0),
        sample(packet.Tensor, p(3, 4), p(4), p(3, 1)),
    )
]

_OTHERS = [
    sample(aten.threshold.default, p(3, 4), 0.1, 0.7),
    sample(aten.threshold_.default, p(3, 4), 0.1, 0.7),
    sample(aten.complex.default, p(3, 4), p(4)),
    sample(aten.ldexp.Tensor, p(3, 4), ints(4, high=5)),
    sample(aten.ldexp_.default, p(3, 4), ints(4, high=5)),
    sample(aten.where.self, bools(3, 4), p(4), p(3, 1)),
    sample(aten.where.ScalarOther, bools(3, 1), p(4), 0.5),
    sample(aten.where.ScalarSelf, bools(4), 0.5, p(3, 4)),
    sample(aten.where.Scalar, bools(3, 4), 1.5, 0.5),
    sample(aten.masked_fill.Scalar, p(3, 4), bools(4), 0.5),
    sample(aten.masked_fill.Tensor, p(4), bools(3, 1), p()),
    sample(aten.masked_fill_.Scalar, p(3, 4), bools(3, 1), 0.5),
    sample(aten.masked_fill_.Tensor, p(3, 4), bools(4), p()),
]

_SHAPES = [
    sample(aten.relu.default, p(3, 4)),
    sample(aten.gelu.default, p(2, 3, 4)),
    sample(aten.exp.default, p()),
    sample(aten.sigmoid.default, p(1, 4, 1)),
    sample(aten.add.Tensor, p(3, 4), p(3, 4)),
    sample(aten.add.Tensor, p(3, 1), p(4)),
    sample(aten.add.Tensor, p(2, 3, 4), p(3, 1)),
    sample(aten.add.Tensor, p(2, 3, 4), p(4)),
    sample(aten.add.Tensor, p(2, 3, 1, 1), p(3, 1, 4)),
    sample(aten.add.Tensor, p(), p(3, 4)),
    sample(aten.add.Tensor, p(3, 4), p(1)),
    sample(aten.add_.Tensor, p(3, 4), p(4)),
    sample(aten.mul.Tensor, p(2, 3, 4), p(2, 1, 4)),
    sample(aten.mul.Tensor, complexes(3, 4), complexes(4)),
    sample(aten.addcmul.default, p(3, 4), p(4), p(3, 1)),
    sample(aten.addcmul.default, p(1), p(3, 1), p(1, 4)),
    sample(aten.lerp.Tensor, p(3, 4), p(3, 1), p()),
    sample(aten._prelu_kernel.default, p(2, 3, 4), p(1, 3, 1)),
    sample(aten.add.Tensor, p(3, 4), given(4)),
    sample(aten.add.Tensor, p(3, 4), torch.arange(4.0, dtype=torch.float64)),
    sample(aten.mul.Tensor, p(3, 4), torch.full((3, 4), 2.0, dtype=torch.float64)),
]

_OVERWRITES = [
    sample(aten.copy_.default, p(3, 4), p(4)),
    sample(aten.copy_.default, p(3, 4), p(3, 1)),
    sample(aten.copy_.default, p(3, 4), p()),
    sample(aten.copy.default, p(3, 4), p(3, 4)),
]

_UNIFORM = [
    sample(aten.zero_.default, p(3, 4)),
    sample(aten.zero.default, p(3, 4)),
    sample(aten.fill_.Scalar, p(3, 4), 0.5),
    sample(aten.fill.Scalar, p(3, 4), 0.5),
    sample(aten.fill_.Tensor, p(3, 4), p()),
    sample(aten.fill.Tensor, p(3, 4), p()),
]

_DROPOUT = [
    sample(aten.native_dropout.default, p(3, 4), 0.5, False),
    sample(aten.rrelu_with_noise.default, p(3, 4), p(3, 4)),
    sample(aten.rrelu_with_noise_.default, p(3, 4), p(3, 4)),
    sample(aten.native_dropout.default, p(3, 4), 0.0, True, missing={"*": "the mask is random"}),
]

SAMPLES = [
    *(*_automatic(), *_INFINITE, *_BOUNDED, *_OTHERS, *_SHAPES),
    *(*_OVERWRITES, *_UNIFORM, *_DROPOUT),
]
