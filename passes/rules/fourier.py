"""Fourier transforms: every frequency sees all positions of the axes that are transformed."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier_transform(call: Call) -> Sequence[Value]:
    """The transformed axes are positions and then frequencies; the others pass through."""
    changed = {axis % call.rank for axis in call.args["dim"]}
    before, after = (
        " ".join(f"!{side}{axis}" if axis in changed else f"n{axis}" for axis in range(call.rank))
        for side in "st"
    )
    return [call.follow(pattern(f"{before} -> {after}"), call.value("self"))]
