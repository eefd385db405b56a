"""Matrix products and convolutions: rules written as factors, in the style of einops."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value, onto_axes
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule


def contraction(text: str, *names: str) -> None:
    """Register an operator whose tensor arguments, in order, are the operands of a pattern."""
    found = pattern(text)

    @rule(*names)
    def apply(call: Call) -> Sequence[Value]:
        return [call.follow(found, *map(call.lookup, call.tensors()))]


contraction("n k, k m -> n m", "mm.default")
contraction("b n k, b k m -> b n m", "bmm.default")
contraction("n k, k -> n", "mv")
contraction("k, k -> ", "dot", "vdot")
contraction("n, m -> n m", "outer", "ger")


def plus_contraction(text: str, first: str, second: str, *names: str) -> None:
    """Register operators that compute `self + first @ second`."""
    found = pattern(text)

    @rule(*names)
    def apply(call: Call) -> Sequence[Value]:
        product = call.follow(found, call.value(first), call.value(second))
        return [call.join([*product.fields, *call.broadcast(call.value("self"), call.rank)])]


plus_contraction("n k, k m -> n m", "mat1", "mat2", "addmm.default", "addmm_")
plus_contraction("b n k, b k m -> b n m", "batch1", "batch2", "baddbmm.default", "baddbmm_")
plus_contraction("n k, k -> n", "mat", "vec", "addmv")


_LINEAR = pattern("... i, o i -> ... o")


@rule("linear")
def linear(call: Call) -> Sequence[Value]:
    """`input @ weight.T + bias`, over any number of leading axes."""
    product = call.follow(_LINEAR, call.value("input"), call.value("weight"))
    return [_plus_bias(call, product, axis=-1)]


@rule("convolution", "_convolution")
def convolution(call: Call) -> Sequence[Value]:
    """Dense, grouped, depthwise and transposed convolution, in one to three dimensions."""
    value, weight = call.value("input"), call.value("weight")
    before, filters, after = convolution_patterns(call, len(value.shape), len(weight.shape))
    call.note_taps(weight, range(2, len(weight.shape)))
    text = f"{before}, {filters} -> {after}"
    product = call.follow(pattern(text), value, weight, g=call.args["groups"])
    return [_plus_bias(call, product, axis=call.rank - len(weight.shape) + 1)]


def convolution_patterns(call: Call, ndim: int, ndim_of_weight: int) -> tuple[str, str, str]:
    """Factors of a convolution's input of some dimensions, of its filters and of its output."""
    spatial = range(ndim_of_weight - 2)
    apart = [axis for axis in spatial if not _is_pointwise(call, axis)]
    s, t = (
        " ".join(f"!{name}{axis}" if axis in apart else f"same{axis}" for axis in spatial)
        for name in "st"
    )
    k = " ".join(f"!k{axis}" for axis in spatial)
    filters = f"(g i) o {k}" if call.args.get("transposed", False) else f"(g o) i {k}"
    batch = "n " if ndim == ndim_of_weight else ""
    return f"{batch}(g i) {s}", filters, f"{batch}(g o) {t}"


def _is_pointwise(call: Call, axis: int) -> bool:
    """Each position along a spatial axis goes to the same position of the output, and no other."""
    stride, padding = (
        call.args[name][axis % len(call.args[name])] for name in ("stride", "padding")
    )
    extra = call.args.get("output_padding") or [0]
    return (
        call.args["weight"].shape[2 + axis] == 1 and stride == 1 and padding == 0 and not any(extra)
    )


def _plus_bias(call: Call, product: Value, axis: int) -> Value:
    bias = call.optional("bias")
    if bias is None:
        return product
    ndim = len(product.shape)
    placed = onto_axes(bias.fields, [axis % ndim], ndim)
    return call.join([*product.fields, *placed])
