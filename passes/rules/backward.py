"""Derivatives, for models that take gradients in `forward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fxrebasin.passes.fields.fields import Value, onto_axes
from fxrebasin.passes.fields.moving import part_of_axis
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.contraction import convolution_patterns
from fxrebasin.passes.rules.normalization import parameters, running_statistics
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.pooling import windows
from fxrebasin.passes.rules.registry import pin_everything, rule


@rule(
    *("elu_backward", "gelu_backward", "hardshrink_backward", "hardsigmoid_backward"),
    *("hardswish_backward", "hardtanh_backward", "leaky_relu_backward", "log_sigmoid_backward"),
    *("logit_backward", "mish_backward", "sigmoid_backward", "silu_backward", "softplus_backward"),
    *("softshrink_backward", "tanh_backward", "threshold_backward", "_prelu_kernel_backward"),
    *("mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward"),
)
def element_wise(call: Call) -> Sequence[Value]:
    """Each element from the gradient and what the operator saw or made at its position."""
    return pointwise(call)


@rule("prims::add", "prims::sub", "prims::mul", "prims::div")
def with_zeros(call: Call) -> Sequence[Value]:
    """What torch runs to learn the shape of a tangent that is zero."""
    return pointwise(call)


@rule("_softmax_backward_data", "_log_softmax_backward_data")
def softmax(call: Call) -> Sequence[Value]:
    """A sum over the axis of gradients, weighted with the outputs, meets both."""
    both = call.join([*call.value("grad_output").fields, *call.value("output").fields])
    dim = call.args["dim"] % max(len(both.shape), 1)
    return [call.join(call.with_statistics(both, set(range(len(both.shape))) - {dim}))]


def _wanted(call: Call, *found: Callable[[], Value]) -> Sequence[Value]:
    """The gradients that are asked for."""
    wanted = zip(call.args["output_mask"], found, strict=True)
    made = [make for asked, make in wanted if asked]
    if len(made) != len(call.outputs):
        return pin_everything("gradients that were not asked for")(call)
    return [make() for make in made]


@rule("native_layer_norm_backward")
def layer_norm(call: Call) -> Sequence[Value]:
    """Gradients meet the input, and the sums of both over the last axes."""
    grad, value = call.value("grad_out"), call.value("input")
    ndim = len(value.shape)
    leading = ndim - len(call.args["normalized_shape"])
    weight = call.optional("weight")
    fields = [*grad.fields, *value.fields, *call.value("mean").fields, *call.value("rstd").fields]
    met = call.join(fields, value.shape)
    scaled = [] if weight is None else call.broadcast(weight, ndim)
    inner = range(leading, ndim)

    def for_input() -> Value:
        both = call.join([*met.fields, *scaled], value.shape)
        return call.join(call.with_statistics(both, range(leading)), value.shape)

    sums = (lambda: _left(call, met, inner)), (lambda: _left(call, grad, inner))
    return _wanted(call, for_input, *sums)


def _left(call: Call, value: Value, axes: Sequence[int]) -> Value:
    """A sum over all other axes."""
    shape = tuple(value.shape[axis] for axis in axes)
    return Value(shape, tuple(call.reduced(value, list(axes))))


@rule("native_batch_norm_backward")
def batch_norm(call: Call) -> Sequence[Value]:
    """By channel; in training, sums over the batch as well."""
    grad, value = call.value("grad_out"), call.value("input")
    ndim = len(value.shape)
    fields = [*grad.fields, *value.fields, *parameters(call, ("weight",), [1], ndim)]
    fields += running_statistics(call, ndim)
    fields += parameters(call, ("save_mean", "save_invstd"), [1], ndim)
    met = call.join(fields, value.shape)

    def for_input() -> Value:
        trained = call.args["train"]
        return call.join(call.with_statistics(met, {1}), value.shape) if trained else met

    sums = (lambda: _left(call, met, [1])), (lambda: _left(call, grad, [1]))
    return _wanted(call, for_input, *sums)


@rule("native_group_norm_backward")
def group_norm(call: Call) -> Sequence[Value]:
    """Sums over each group of channels, of gradients and of their products with the input."""
    grad, value = call.value("grad_out"), call.value("input")
    weight = call.optional("weight")
    scaled = [] if weight is None else onto_axes(weight.fields, [1], len(value.shape))

    def for_input() -> Value:
        met = call.join([*grad.fields, *value.fields, *scaled], value.shape)
        return _in_groups(call, met)

    sums = (lambda: _left(call, for_input(), [1])), (lambda: _left(call, grad, [1]))
    return _wanted(call, for_input, *sums)


def _in_groups(call: Call, value: Value) -> Value:
    """A tensor that meets sums of its own and statistics, by group of channels."""
    batch, channels, *spatial = value.shape
    split = [batch, call.args["group"], channels // call.args["group"], *spatial]
    fields = call.reshape(value.fields, value.shape, split)
    fields += call.reduce(Value(tuple(split), tuple(fields)), {0, 1})
    for name in ("mean", "rstd"):
        given = call.value(name)
        parts = call.reshape(given.fields, given.shape, split[:2])
        fields += onto_axes(parts, [0, 1], len(split))
    met = call.join(fields, split)
    return call.join(call.reshape(met.fields, split, value.shape), value.shape)


@rule("convolution_backward")
def convolution(call: Call) -> Sequence[Value]:
    """Two convolutions, of the gradient with the filters and of the input with the gradient."""
    grad, value, weight = (call.value(name) for name in ("grad_output", "input", "weight"))
    before, filters, after = convolution_patterns(call, len(value.shape), len(weight.shape))

    def meet(text: str, one: Value, other: Value, shape: Sequence[int]) -> Value:
        return call.follow(pattern(text), one, other, shape=shape, g=call.args["groups"])

    return _wanted(
        call,
        lambda: meet(f"{after}, {filters} -> {before}", grad, weight, value.shape),
        lambda: meet(f"{after}, {before} -> {filters}", grad, value, weight.shape),
        lambda: _left(call, grad, [len(grad.shape) - len(weight.shape) + 1]),
    )


def _spatial(dimensions: int, *names: str) -> None:
    moved = windows(dimensions)

    @rule(*names)
    def apply(call: Call) -> Sequence[Value]:
        """Positions of an image go back to others; what chooses them differs by channel, too."""
        found = (call.follow(moved, call.lookup(tensor)) for tensor in call.tensors())
        return [call.join([item for value in found for item in value.fields])]


_spatial(1, "upsample_nearest1d_backward", "upsample_linear1d_backward")
_spatial(
    2,
    *("avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "max_pool2d_with_indices_backward"),
    *("upsample_nearest2d_backward", "upsample_bilinear2d_backward", "reflection_pad2d_backward"),
    *("replication_pad2d_backward", "upsample_bicubic2d_backward"),
)
_spatial(
    3,
    *("avg_pool3d_backward", "_adaptive_avg_pool3d_backward", "max_pool3d_with_indices_backward"),
    *("upsample_nearest3d_backward", "upsample_trilinear3d_backward"),
)


_PART = "a part that a gradient belongs to"


@rule("slice_backward")
def slice_back(call: Call) -> Sequence[Value]:
    """The gradient in its places along an axis, zeros elsewhere."""
    dim = call.args["dim"] % call.rank
    start, end, step = (call.args[name] for name in ("start", "end", "step"))
    places = torch.arange(call.shape[dim])[start:end:step]
    put = call.put_at(call.value("grad_output"), dim, places)
    return [call.join([*put, *part_of_axis(call.shape, dim, places, _PART)])]


@rule("select_backward")
def select_back(call: Call) -> Sequence[Value]:
    """The gradient at one position of an axis, zeros elsewhere."""
    ndim = len(call.shape)
    dim = call.args["dim"] % ndim
    others = [axis for axis in range(ndim) if axis != dim]
    placed = onto_axes(call.value("grad_output").fields, others, ndim)
    chosen = torch.tensor([call.args["index"] % call.shape[dim]])
    return [call.join([*placed, *part_of_axis(call.shape, dim, chosen, _PART)])]
