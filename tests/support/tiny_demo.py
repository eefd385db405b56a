"""The demo's subjects, but so small that all of the demo runs in a test."""

from __future__ import annotations

from dataclasses import replace

from fxrebasin.demo.networks import DigitsMLP, DigitsResNet
from fxrebasin.demo.subjects import SUBJECTS

_BUILDERS = (lambda: DigitsMLP(width=16), lambda: DigitsResNet(width=4))

TINY = tuple(
    replace(subject, build=build, recipe=replace(subject.recipe, epochs=1))
    for subject, build in zip(SUBJECTS, _BUILDERS, strict=True)
)
