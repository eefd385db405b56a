"""Numbers that stand for "never" do not hide how far others are apart."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.passes.trace.trace import _agree
from fxrebasin.running.apart import relative_error

NEVER = (-1e4, -65504.0, -1e9, 1e12, -1e30, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("never", NEVER)
def test_a_mask_is_no_scale_for_what_is_not_masked(never: float) -> None:
    one = torch.tensor([[3.0, -2.0, never, 1.0], [0.5, never, 4.0, 0.0]], dtype=torch.float64)
    other = one.clone()
    other[0, 1] += 0.1
    assert relative_error(one, other) == pytest.approx(0.1 / 4)
    assert relative_error(one, one) == 0
    moved = one.clone()
    moved[0, 2] *= 1 + 1e-6
    assert relative_error(one, moved) == pytest.approx(1e-6)


@pytest.mark.parametrize("never", NEVER[2:4])
def test_what_is_added_to_a_mask_counts(never: float) -> None:
    logits = torch.tensor([3.0, -2.0, 5.0, 1.0], dtype=torch.float64)
    mask = torch.tensor([0.0, never, 0.0, never], dtype=torch.float64)
    wrong = torch.tensor([3.0, -2.0, 5.05, 1.0], dtype=torch.float64)
    assert relative_error(logits + mask, wrong + mask) == pytest.approx(0.01)


def test_numbers_without_a_gap_are_of_one_kind() -> None:
    spread = torch.logspace(0, 9, 19, dtype=torch.float64)  # steps of half a power of ten
    assert relative_error(spread, spread + 1e-3) == pytest.approx(1e-12, rel=1e-3)
    small = torch.tensor([1.0, 1e-9, 0.0], dtype=torch.float64)  # below the least mask
    assert relative_error(small, small + 1e-12) == pytest.approx(1e-12)


def test_zeros_are_of_the_kind_beside_them() -> None:
    one = torch.tensor([0.0, 2.0, 1e9], dtype=torch.float64)
    assert relative_error(one, one + torch.tensor([0.5, 0.0, 0.0])) == pytest.approx(0.25)
    only = torch.tensor([0.0, 0.0, -1e30], dtype=torch.float64)
    assert relative_error(only, only + torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1e-4)
    assert relative_error(torch.zeros(2), torch.ones(2)) == math.inf


def test_complex_numbers_and_infinities() -> None:
    one = torch.tensor([3 + 4j, 1e12 + 0j], dtype=torch.complex128)
    assert relative_error(one, one + torch.tensor([1, 0])) == pytest.approx(0.2)
    endless = torch.tensor([-math.inf, 2.0, 1e9])
    assert relative_error(endless, torch.tensor([-math.inf, 3.0, 1e9])) == pytest.approx(0.5)


class Masked(nn.Module):
    """Scores, of which one is never allowed."""

    def __init__(self, never: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 6)
        self.never = never
        self.register_buffer("allowed", torch.tensor([True] * 5 + [False]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu()).masked_fill(~self.allowed, self.never)


@pytest.mark.parametrize("never", NEVER)
def test_other_scores_beside_a_mask_are_no_equal_ones(never: float, tmp_path: Path) -> None:
    model, example = Masked(never).eval(), torch.randn(3, 4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.last.weight[:5] += 1e-3 * torch.randn(5, 8)
    assert fxrebasin.verify(model, copy.deepcopy(model), example).passed
    assert not fxrebasin.verify(model, other, example).passed
    report = fxrebasin.export_onnx(model, tmp_path / "m.onnx", example)
    assert report.passed
    assert not fxrebasin.verify(other, tmp_path / "m.onnx", example).passed
    found = fxrebasin.transform(other, model, example)
    assert torch.allclose(found(-example)[:, :5], other(-example)[:, :5], rtol=1e-4, atol=1e-5)


def test_graphs_are_compared_beside_masks() -> None:
    one = torch.tensor([[1.0, torch.finfo(torch.float32).min, math.nan, math.inf]])
    other = one.clone()
    assert _agree(one, other)
    other[0, 0] += 1e-3
    assert not _agree(one, other)
    assert not _agree(one, one.nan_to_num(0))
