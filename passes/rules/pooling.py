"""Pooling, padding and resampling: operators along positions of an image or a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value, place, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.registry import Call, rule


def windowed(call: Call, value: Value, axes: Sequence[int]) -> list[Value]:
    """Some axes are positions before and after; the others pass through unchanged."""
    reason = f"position of {call.op}"
    ndim = len(value.shape)
    pinned = call.pin_axes(value, axes, "position")
    passed = call.ledger.reduce(pinned, set(range(ndim)) - set(axes))
    results = []
    for out in call.outputs:
        fresh = [positions(ndim, a, out.shape[a], reason) for a in axes if out.shape[a] > 1]
        results.append(Value(tuple(out.shape), (*passed, *fresh)))
    return results


def _spatial(dimensions: int, *names: str) -> None:
    @rule(*names)
    def apply(call: Call) -> Sequence[Value]:
        name = "self" if "self" in call.args else "input"
        value = call.value(name)
        ndim = len(value.shape)
        return windowed(call, value, range(ndim - dimensions, ndim))


_spatial(
    1,
    *("avg_pool1d", "max_pool1d_with_indices", "max_pool1d", "adaptive_avg_pool1d"),
    *("adaptive_max_pool1d", "upsample_nearest1d", "_upsample_nearest_exact1d"),
    *("upsample_linear1d", "reflection_pad1d", "replication_pad1d"),
)
_spatial(
    2,
    *("avg_pool2d", "max_pool2d_with_indices", "max_pool2d", "_adaptive_avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d"),
    *("_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad2d"),
    *("replication_pad2d",),
)
_spatial(
    3,
    *("avg_pool3d", "max_pool3d_with_indices", "max_pool3d", "_adaptive_avg_pool3d"),
    *("adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d"),
    *("_upsample_nearest_exact3d", "upsample_trilinear3d", "reflection_pad3d"),
    *("replication_pad3d",),
)


@rule("fractional_max_pool2d", "fractional_max_pool3d")
def fractional_pool(call: Call) -> Sequence[Value]:
    """Where the windows begin is drawn at random for each image and channel."""
    value, samples = call.value("self"), call.value("random_samples")
    spatial = samples.shape[2]
    leading = range(len(value.shape) - spatial)
    mine = list(range(2))[2 - len(leading) :]
    begins = call.ledger.reduce(call.pin_axes(samples, [2], "coordinate"), mine)
    placed = [place(pick_axes(item, mine), leading, len(value.shape)) for item in begins]
    pooled = windowed(call, value, range(len(leading), len(value.shape)))
    return [call.join([*item.fields, *placed], item.shape) for item in pooled]


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Sequence[Value]:
    """Values go back to the positions that their maxima had, in each channel."""
    value, indices = call.value("self"), call.value("indices")
    axes = range(len(value.shape) - len(call.args["output_size"]), len(value.shape))
    both = call.join([*value.fields, *indices.fields], value.shape)
    return windowed(call, both, axes)
