"""Pooling, padding and resampling: operators along positions of an image or a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.patterns import Pattern, pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule


def windows(dimensions: int) -> Pattern:
    """The last axes are positions before and after; the others pass through unchanged."""
    before, after = (" ".join(f"!{side}{axis}" for axis in range(dimensions)) for side in "st")
    return pattern(f"... {before} -> ... {after}")


def _along(dimensions: int, *names: str) -> None:
    found = windows(dimensions)

    @rule(*names)
    def apply(call: Call) -> Sequence[Value]:
        value = call.value("self" if "self" in call.args else "input")
        return _each(call, call.follow(found, value))


def _each(call: Call, found: Value) -> list[Value]:
    """Values and where they were found lie along the same axes."""
    return [Value(tuple(out.shape), found.fields) for out in call.outputs]


_along(
    1,
    *("avg_pool1d", "max_pool1d_with_indices", "max_pool1d", "adaptive_avg_pool1d"),
    *("adaptive_max_pool1d", "upsample_nearest1d", "_upsample_nearest_exact1d"),
    *("upsample_linear1d", "reflection_pad1d", "replication_pad1d"),
)
_along(
    2,
    *("avg_pool2d", "max_pool2d_with_indices", "max_pool2d", "_adaptive_avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d"),
    *("_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad2d"),
    *("replication_pad2d",),
)
_along(
    3,
    *("avg_pool3d", "max_pool3d_with_indices", "max_pool3d", "_adaptive_avg_pool3d"),
    *("adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest3d"),
    *("_upsample_nearest_exact3d", "upsample_trilinear3d", "reflection_pad3d"),
    *("replication_pad3d",),
)


def _at_random(dimensions: int, name: str) -> None:
    before, after = (" ".join(f"!{side}{axis}" for axis in range(dimensions)) for side in "st")
    found = {
        len(leading.split()): pattern(f"{leading} {before}, n c !x -> {leading} {after}")
        for leading in ("c", "n c")
    }

    @rule(name)
    def apply(call: Call) -> Sequence[Value]:
        """Where the windows begin is drawn at random for each image and channel."""
        value, samples = call.value("self"), call.value("random_samples")
        return _each(call, call.follow(found[call.rank - dimensions], value, samples))


_at_random(2, "fractional_max_pool2d")
_at_random(3, "fractional_max_pool3d")


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Sequence[Value]:
    """Values go back to the positions that their maxima had, in each channel."""
    value, indices = call.value("self"), call.value("indices")
    both = call.join([*value.fields, *indices.fields], value.shape)
    return [call.follow(windows(len(call.args["output_size"])), both)]
