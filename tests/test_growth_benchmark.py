"""The benchmark of how analysis grows: its fit, its page, and one small curve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.support.growth import Curve, Point, exponent, markdown, measured, picture


def points(power: float) -> list[Point]:
    return [Point("depth", "blocks", size, size, 1.0, 0.2 * size**power) for size in (3, 6, 12, 48)]


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_the_exponent_is_that_of_a_power(power):
    assert exponent(points(power)) == pytest.approx(power, abs=1e-9)


def test_the_page_and_the_picture_have_all_curves():
    other = [Point("width", "units", size, 1, 1.0, 1.0 / size) for size in (1, 2)]
    page = markdown([*points(1.0), *other])
    assert "| depth: blocks | 1.00 | 3, 6, 12, 48 |" in page
    assert "| width: units | -1.00 | 1, 2 |" in page
    assert picture([*points(1.0), *other]).startswith(b"\x89PNG")


def test_a_curve_is_measured_at_all_sizes():
    def build(size):
        layers = [nn.Linear(4, 4) if at % 2 else nn.ReLU() for at in range(2 * size)]
        return nn.Sequential(*layers, nn.Linear(4, 2)), torch.zeros(1, 4)

    found = list(measured(Curve("depth", "layers", (1, 3), build)))
    assert [point.size for point in found] == [1, 3]
    assert [point.classes for point in found] == [1, 3]
    assert all(point.seconds > 0 for point in found)
