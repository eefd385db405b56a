"""Element-wise operators on lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import overloads, rule

_NAMES = [
    *("addcdiv.Scalar", "addcdiv.ScalarList", "addcmul.Scalar", "addcmul.ScalarList"),
    *("abs", "acos", "add", "asin", "atan", "ceil", "clamp_max", "clamp_min"),
    *("cos", "cosh", "div", "erf", "erfc", "exp", "expm1", "floor", "frac", "lerp", "lgamma"),
    *("log", "log10", "log1p", "log2", "maximum", "minimum", "mul", "neg", "pow", "reciprocal"),
    *("round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh", "trunc"),
]


@rule(*(name for name in map("_foreach_{}".format, _NAMES) if overloads(name)))
def each(call: Call) -> Sequence[Value]:
    """Tensors at one place in all lists meet; those that are not in lists meet all of them."""
    results = []
    for index, out in enumerate(call.outputs):
        lists = [item for item in call.args.values() if isinstance(item, (list, tuple))]
        mine = [item[index] for item in lists if len(item) == len(call.outputs)]
        mine += call.args.values()
        fields = [
            field
            for item in mine
            if isinstance(item, Tensor)
            for field in call.broadcast(call.lookup(item), out.ndim)
        ]
        results.append(call.join(fields, out.shape))
    return results
