"""Values of an image at points between its pixels."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule

_POINTS = {
    4: pattern("n c !h !w, n !p !q !x -> n c !p !q"),
    5: pattern("n c !d !h !w, n !p !q !r !x -> n c !p !q !r"),
}


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sample(call: Call) -> Sequence[Value]:
    """Channels pass, places are data."""
    return [call.follow(_POINTS[call.rank], call.value("input"), call.value("grid"))]
