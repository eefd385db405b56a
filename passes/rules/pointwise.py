"""Operators that compute each output element from the elements at the same position."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import overloads, pin_everything, rule

_ONE_INPUT = [
    *("abs", "acos", "acosh", "angle", "asin", "asinh", "atan", "atanh", "bitwise_not", "ceil"),
    *("celu", "clamp.default", "clip.default", "conj_physical", "cos", "cosh", "deg2rad"),
    *("digamma", "elu", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "floor", "frac", "gelu"),
    *("hardshrink", "hardsigmoid", "hardswish", "hardtanh", "i0", "isfinite", "isinf", "isnan"),
    *("isneginf", "isposinf", "leaky_relu", "lgamma", "log", "log10", "log1p", "log2"),
    *("logical_not", "logit", "mish", "nan_to_num", "neg", "polygamma", "rad2deg", "reciprocal"),
    *("relu", "relu6", "round", "rsqrt", "selu", "sgn", "sigmoid", "sign", "signbit", "silu"),
    *("sin", "sinc", "sinh", "softplus", "softshrink", "special_entr", "special_erfcx"),
    *("special_i0e", "special_i1", "special_i1e", "special_log_ndtr", "special_ndtri", "sqrt"),
    *("square", "tan", "tanh", "threshold", "trunc", "log_sigmoid_forward"),
    *("clamp_max.default", "clamp_min.default"),
]

_SEVERAL_INPUTS = [
    *("add", "addcdiv", "addcmul", "atan2", "bitwise_and", "bitwise_left_shift", "bitwise_or"),
    *("bitwise_right_shift", "bitwise_xor", "clamp.Tensor", "clamp_max.Tensor", "clamp_min.Tensor"),
    *("clip.Tensor", "complex", "copysign", "div", "eq.Scalar", "eq_.Tensor", "float_power"),
    *("floor_divide", "fmax"),
    *("fmin", "fmod", "gcd", "ge", "gt", "heaviside", "hypot", "igamma", "igammac", "lcm", "ldexp"),
    *("le", "lerp", "logaddexp", "logaddexp2", "logical_and", "logical_or", "logical_xor", "lt"),
    *("masked_fill", "max.other", "maximum", "min.other", "minimum", "mul", "ne", "nextafter"),
    *("polar", "pow", "remainder", "rsub", "special_xlog1py", "special_zeta", "sub", "true_divide"),
    *("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", "xlogy"),
    *("_prelu_kernel",),
]


def _with_in_place(names: list[str]) -> list[str]:
    """The names, and after each that of the operator that works in place, if there is one."""
    both = []
    for name in names:
        packet, dot, overload = name.partition(".")
        in_place = f"{packet}_{dot}{overload}"
        both += [name, in_place] if overloads(in_place) else [name]
    return both


@rule(*_with_in_place(_ONE_INPUT + _SEVERAL_INPUTS))
def pointwise(call: Call) -> Sequence[Value]:
    """Axes meet after broadcasting; a broadcast axis says nothing."""
    if any(out.numel() and tuple(out.shape) != call.shape for out in call.outputs):
        return pin_everything("work space")(call)
    values = [call.lookup(tensor) for tensor in call.tensors()]
    met = call.join(item for value in values for item in call.broadcast(value, call.rank))
    return [Value(tuple(out.shape), met.fields if out.numel() else ()) for out in call.outputs]


@rule("copy_.default", "copy.default")
def overwrite(call: Call) -> Sequence[Value]:
    """The old content is gone; the source is broadcast to the destination."""
    return [call.join(call.broadcast(call.value("src"), len(call.shape)))]


@rule("zero_", "zero", "fill_.Scalar", "fill.Scalar", "fill_.Tensor", "fill.Tensor")
def uniform(call: Call) -> Sequence[Value]:
    """One number everywhere: no axis is held by it."""
    return [Value(tuple(out.shape)) for out in call.outputs]


@rule("native_dropout")
def inactive_dropout(call: Call) -> Sequence[Value]:
    """Models are analysed in eval mode, where this is the identity, with a mask of ones."""
    value = call.value("input")
    if call.args["train"] is not False:
        return pin_everything("random mask")(call)
    return [value, *(Value(tuple(out.shape)) for out in call.outputs[1:])]


@rule("rrelu_with_noise", "rrelu_with_noise_")
def leaky_without_noise(call: Call) -> Sequence[Value]:
    """In eval mode the slope is the middle of its range; in training it is drawn."""
    if call.args.get("training", False) is not False:
        return pin_everything("random slopes")(call)
    return [call.value("self")]
