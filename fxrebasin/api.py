"""The public functions that find, match and move permutations, under one name."""

from fxrebasin.calls.analyzing import analyze
from fxrebasin.calls.applying import apply
from fxrebasin.calls.given import OnnxOrModule, Reference
from fxrebasin.calls.matching import match, matched
from fxrebasin.calls.transforming import transform

__all__ = ["OnnxOrModule", "Reference", "analyze", "apply", "match", "matched", "transform"]
