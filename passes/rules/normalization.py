"""Normalisation: statistics over some axes, then scale and shift."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Field, Value, onto_axes
from fxrebasin.passes.fields.moving import pick_axes
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import pin_everything, rule


def parameters(call: Call, names: Sequence[str], axes: Sequence[int], ndim: int) -> list[Field]:
    """Scale and shift, along axes of the operand or the last of these."""
    found = [call.optional(name) for name in names]
    return [
        item
        for value in found
        if value is not None
        for item in onto_axes(value.fields, axes[len(axes) - len(value.shape) :], ndim)
    ]


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "_batch_norm_no_update", "miopen_batch_norm"),
)
def batch_norm(call: Call) -> Sequence[Value]:
    """Running statistics are state: they are permuted with the channels."""
    return _batch_norm(call, training=call.args.get("training", False))


@rule("_batch_norm_with_update")
def batch_norm_in_training(call: Call) -> Sequence[Value]:
    """Statistics of the batch itself, which running ones are updated with."""
    return _batch_norm(call, training=True)


def _batch_norm(call: Call, training: bool) -> list[Value]:
    value = call.value("input")
    ndim = len(value.shape)
    uses_running = not training and call.args.get("running_mean") is not None
    fields = list(value.fields) if uses_running else call.with_statistics(value, {1})
    fields += running_statistics(call, ndim)
    fields += parameters(call, ("weight", "bias"), [1], ndim)
    return _with_channel_statistics(call, fields, channel=1)


def running_statistics(call: Call, ndim: int) -> list[Field]:
    """Mean and variance of channels, which are state, along the channels of the operand."""
    tensors = (call.args.get(name) for name in ("running_mean", "running_var"))
    return [
        item
        for tensor in tensors
        if tensor is not None
        for item in onto_axes(call.running_statistics(tensor).fields, [1], ndim)
    ]


def _with_channel_statistics(call: Call, fields: list[Field], channel: int) -> list[Value]:
    first = call.join(fields)
    rest = []
    for out in call.outputs[1:]:
        kept = call.reduced(first, [channel]) if out.ndim == 1 and out.numel() else []
        rest.append(Value(tuple(out.shape), tuple(kept)))
    return [first, *rest]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Sequence[Value]:
    """Mean and variance over the last axes."""
    value, shape = call.value("input"), tuple(call.args["normalized_shape"])
    ndim = len(value.shape)
    if not shape or value.shape[-len(shape) :] != shape:  # one operator takes these, and broadcasts
        return pin_everything("a normalised shape that is not the input's")(call)
    normalised = range(ndim - len(shape), ndim)
    leading = set(range(ndim)) - set(normalised)
    fields = call.with_statistics(value, leading)
    fields += parameters(call, ("weight", "bias"), list(normalised), ndim)
    first = call.join(fields)
    statistics = tuple(call.reduce(first, leading))
    return [first, *(Value(tuple(out.shape), statistics) for out in call.outputs[1:])]


@rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Value]:
    """Mean and variance per group of channels: channels move within groups, groups as a whole."""
    value = call.value("input")
    batch, channels, *spatial = value.shape
    split = [batch, call.args["group"], channels // call.args["group"], *spatial]
    grouped = call.reshape(value.fields, value.shape, split)
    statistics = call.reduce(Value(tuple(split), tuple(grouped)), {0, 1})
    met = call.join([*grouped, *statistics], split)
    fields = call.reshape(met.fields, split, value.shape)
    fields += parameters(call, ("weight", "bias"), [1], len(value.shape))
    by_group = tuple(pick_axes(item, [0, 1]) for item in statistics)
    rest = [Value(tuple(out.shape), by_group) for out in call.outputs[1:]]
    return [call.join(fields), *rest]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(call: Call) -> Sequence[Value]:
    """Each element over the sum along an axis, which does not depend on the order there."""
    value = call.value("self")
    dim = call.args["dim"] % max(len(value.shape), 1)
    kept = set(range(len(value.shape))) - {dim}
    return [call.join(call.with_statistics(value, kept))]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> Sequence[Value]:
    """w = g * v / |v|, the norm over all axes but `dim`; gives back w and the norms."""
    direction, length = call.value("v"), call.value("g")
    dim = call.args["dim"]
    fields = call.with_statistics(direction, {dim})
    first = call.join([*fields, *call.broadcast(length, len(direction.shape))])
    return [first, Value(tuple(call.outputs[1].shape), tuple(call.reduce(first, {dim})))]


@rule("renorm", "renorm_")
def held_down(call: Call) -> Sequence[Value]:
    """Slices along an axis, made shorter where their norm over all other axes is too large."""
    value = call.value("self")
    return [call.join(call.with_statistics(value, {call.args["dim"] % len(value.shape)}))]
