"""Fourier transforms: every frequency sees all positions of the axes that are transformed."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.rules.pooling import windowed
from fxrebasin.passes.rules.registry import Call, rule


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier_transform(call: Call) -> Sequence[Value]:
    """The transformed axes are positions and then frequencies; the others pass through."""
    value = call.value("self")
    return windowed(call, value, [axis % len(value.shape) for axis in call.args["dim"]])
