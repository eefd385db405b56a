"""Normalisation: statistics over some axes, then scale and shift."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fxrebasin.passes.fields.fields import Field, Value, place
from fxrebasin.passes.rules.contraction import pick_axes, reshape_field
from fxrebasin.passes.rules.registry import Call, rule


def with_statistics(call: Call, value: Value, kept: Collection[int]) -> list[Field]:
    """A tensor that meets its own statistics, taken over all but the kept axes."""
    return [*value.fields, *call.ledger.reduce(value, kept)]


def _parameters(call: Call, names: Sequence[str], axes: Sequence[int], ndim: int) -> list[Field]:
    found = [call.optional(name) for name in names]
    return [
        place(item, axes, ndim) for value in found if value is not None for item in value.fields
    ]


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("cudnn_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm"),
)
def batch_norm(call: Call) -> Sequence[Value]:
    """Running statistics are state: they are permuted with the channels."""
    value = call.value("input")
    ndim = len(value.shape)
    by_name = call.op._schema.name.endswith("_with_update")
    training = call.args.get("training", call.args.get("train", by_name))
    uses_running = not training and call.args.get("running_mean") is not None
    fields = list(value.fields) if uses_running else with_statistics(call, value, {1})
    for name in ("running_mean", "running_var"):
        tensor = call.args.get(name)
        if tensor is not None:
            fields += [place(item, [1], ndim) for item in call.state(tensor).fields]
    fields += _parameters(call, ("weight", "bias"), [1], ndim)
    return _with_channel_statistics(call, fields, channel=1)


def _with_channel_statistics(call: Call, fields: list[Field], channel: int) -> list[Value]:
    first = call.join(fields)
    rest = []
    for out in call.outputs[1:]:
        kept = call.ledger.reduce(first, {channel}) if out.ndim == 1 and out.numel() else []
        rest.append(Value(tuple(out.shape), tuple(_only(item, channel) for item in kept)))
    return [first, *rest]


def _only(item: Field, axis: int) -> Field:
    return pick_axes(item, [axis])


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Sequence[Value]:
    """Mean and variance over the last axes."""
    value = call.value("input")
    ndim = len(value.shape)
    normalised = range(ndim - len(call.args["normalized_shape"]), ndim)
    leading = set(range(ndim)) - set(normalised)
    fields = with_statistics(call, value, leading)
    fields += _parameters(call, ("weight", "bias"), list(normalised), ndim)
    first = call.join(fields)
    statistics = tuple(call.ledger.reduce(first, leading))
    return [first, *(Value(tuple(out.shape), statistics) for out in call.outputs[1:])]


@rule("native_group_norm")
def group_norm(call: Call) -> Sequence[Value]:
    """Mean and variance per group of channels: channels move within groups, groups as a whole."""
    value = call.value("input")
    batch, channels, *spatial = value.shape
    split = [batch, call.args["group"], channels // call.args["group"], *spatial]
    grouped = [
        part
        for item in value.fields
        for part in reshape_field(call.ledger, item, value.shape, split)
    ]
    statistics = call.ledger.reduce(Value(tuple(split), tuple(grouped)), {0, 1})
    joined = call.ledger.join([*grouped, *statistics])
    fields = [
        part for item in joined for part in reshape_field(call.ledger, item, split, value.shape)
    ]
    fields += _parameters(call, ("weight", "bias"), [1], len(value.shape))
    rest = [_drop(call, statistics, tuple(out.shape)) for out in call.outputs[1:]]
    return [call.join(fields), *rest]


def _drop(call: Call, fields: Sequence[Field], shape: tuple[int, ...]) -> Value:
    return Value(shape, tuple(pick_axes(item, [0, 1]) for item in fields))


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(call: Call) -> Sequence[Value]:
    """Each element over the sum along an axis, which does not depend on the order there."""
    value = call.value("self")
    dim = call.args["dim"] % max(len(value.shape), 1)
    kept = set(range(len(value.shape))) - {dim}
    return [call.join(with_statistics(call, value, kept))]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> Sequence[Value]:
    """w = g * v / |v|, the norm over all axes but `dim`; gives back w and the norms."""
    direction, length = call.value("v"), call.value("g")
    dim = call.args["dim"]
    fields = with_statistics(call, direction, {dim})
    first = call.join([*fields, *call.broadcast(length, len(direction.shape))])
    return [first, Value(tuple(call.outputs[1].shape), tuple(call.ledger.reduce(first, {dim})))]
