"""Values of an image at points between its pixels."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Field, Value, place, positions
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.registry import Call, rule


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call) -> Sequence[Value]:
    """`[n, c, *image], [n, *points, d] -> [n, c, *points]`: channels pass, places are data."""
    image, grid = call.value("input"), call.value("grid")
    ndim = len(image.shape)
    points = [0, *range(2, ndim)]
    pinned = call.pin_axes(image, range(2, ndim), "position")
    fields: list[Field] = list(call.ledger.reduce(pinned, {0, 1}))
    places = call.pin_axes(grid, [-1], "coordinate")
    kept = range(ndim - 1)
    for item in call.ledger.reduce(places, kept):
        fields.append(place(pick_axes(item, kept), points, ndim))
    reason = f"position of {call.op}"
    fields += [positions(ndim, a, call.shape[a], reason) for a in points[1:] if call.shape[a] > 1]
    return [call.join(fields)]
