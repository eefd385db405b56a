"""Distances between all pairs of rows."""

from __future__ import annotations

from collections.abc import Sequence

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import rule

_DISTANCES = pattern("... n m, ... r m -> ... n r")


@rule("_cdist_forward")
def distances(call: Call) -> Sequence[Value]:
    """Of each row to each; the order along the last axes does not matter."""
    return [call.follow(_DISTANCES, call.value("x1"), call.value("x2"))]
