"""Numbers that stand for "never" do not hide how far others are apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.passes.trace.comparing import _agree
from fxrebasin.running.apart import parts

NEVER = (-1e4, -65504.0, -1e9, 1e12, -1e30, torch.finfo(torch.float32).min)


def judged(one: torch.Tensor, other: torch.Tensor, noise: torch.Tensor | float) -> bool:
    measured = torch.as_tensor(noise, dtype=torch.float64).broadcast_to(parts(one).shape)
    return compare_tensors("y", one, other, tolerance=1e-10, noise=lambda: [measured]).passed


@pytest.mark.parametrize("never", NEVER)
def test_a_mask_is_no_scale_for_what_is_not_masked(never: float) -> None:
    one = torch.tensor([[3.0, -2.0, never, 1.0], [0.5, never, 4.0, 0.0]], dtype=torch.float64)
    noise = one.abs() * 1e-16
    other = one.clone()
    other[0, 1] += 1e-4
    assert not judged(one, other, noise)
    assert judged(one, one, noise)
    assert judged(one, one * (1 + 1e-14), noise)
    moved = one.clone()
    moved[0, 2] *= 1 + 1e-6
    assert not judged(one, moved, noise)


def test_what_cancels_may_be_off_by_its_own_noise_and_hides_nothing_else() -> None:
    one = torch.tensor([0.0, 3e-9, 2.0, 1e9, -1e12], dtype=torch.float64)
    noise = torch.tensor([1e-9, 1e-9, 1e-15, 1e-7, 1e-4], dtype=torch.float64)
    assert judged(one, one + torch.tensor([2e-9, -1e-9, 0, 0, 0]), noise)
    assert judged(one, one + torch.tensor([0, 0, 0, 0, 1.0]), noise)
    for at, error in ((0, 1e-6), (2, 1e-3), (3, 500.0)):
        wrong = one.clone()
        wrong[at] += error
        assert not judged(one, wrong, noise), at


def test_parts_of_complex_numbers_and_infinities() -> None:
    one = torch.tensor([3 + 1e12j, 1e12 + 4j], dtype=torch.complex128)
    assert not judged(one, one + torch.tensor([0.1, 0]), 1e-15)
    assert judged(one, one.clone(), 1e-15)
    endless = torch.tensor([-math.inf, 2.0, 1e9])
    assert not judged(endless, torch.tensor([-math.inf, 2.1, 1e9]), 1e-7)


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


class Function(nn.Module):
    """A function of what a small network computes."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 6)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.last(self.first(x).tanh()))


def columns(h: torch.Tensor, *numbers: float) -> torch.Tensor:
    return torch.cat([h, *(torch.full_like(h[:, :1], number) for number in numbers)], 1)


def squared(h: torch.Tensor) -> torch.Tensor:
    h = 300 * torch.stack([h, h * 0.5, h + 1], 1)
    n = (h * h).sum(-1)
    return n[:, :, None] + n[:, None] - 2 * h @ h.transpose(1, 2)


def moments(h: torch.Tensor) -> torch.Tensor:
    h = h * 10 + 1e4
    mean, square = h.mean(-1, keepdim=True), (h * h).mean(-1, keepdim=True)
    return torch.cat([mean, square, square - mean * mean], 1)


HIDDEN = {
    "a chain of magnitudes": lambda h: columns(h, 5e2, 2.5e5, 1e8, 5e10, 1e13),
    "its own powers": lambda h: torch.cat([h, *(h.abs() * 10**k + 10**k for k in (3, 6, 9))], 1),
    "little beside a constant": lambda h: columns(1e-8 * h, 9999.0),
    "one of many": lambda h: columns(h[:, :1], *([-1e9] * 200)),
    "added": lambda h: h + torch.tensor([0.0, -1e9, 0.0, -1e9, -1e9, -1e9]),
}
CANCELLING = {
    "squared distances": squared,
    "moments": moments,
    "sums": lambda h: torch.cat([h, h.sum(1, keepdim=True) * 1e6, (h + 3e4) - 3e4], 1),
    "nothing": lambda h: torch.cat(
        [1e5 * h, h.sum(1, keepdim=True) - h.flip(1).sum(1)[:, None]], 1
    ),
}


def drawn(function: Callable[[torch.Tensor], torch.Tensor], seed: int) -> Function:
    torch.manual_seed(seed)
    return Function(function).eval()


@pytest.mark.parametrize("name", HIDDEN)
def test_large_numbers_hide_no_other_weights(name: str, tmp_path: Path) -> None:
    model, other, example = drawn(HIDDEN[name], 1), drawn(HIDDEN[name], 2), torch.randn(3, 4)
    assert not fxrebasin.verify(model, other, example).passed
    report = fxrebasin.verify(model, copy.deepcopy(model), example)
    assert report.passed, report
    assert fxrebasin.export_onnx(model, tmp_path / "m.onnx", example).passed
    assert not fxrebasin.verify(other, tmp_path / "m.onnx", example).passed


@pytest.mark.parametrize("name", CANCELLING)
def test_what_cancels_is_no_other_function(name: str, tmp_path: Path) -> None:
    model, other = drawn(CANCELLING[name], 1), drawn(CANCELLING[name], 2)
    example = torch.randn(3, 4)
    result = fxrebasin.transform(model, other, example)
    report = fxrebasin.verify(model, result, example)
    assert report.passed, report
    assert fxrebasin.export_onnx(result, tmp_path / "m.onnx", example).passed
    assert fxrebasin.verify(model, tmp_path / "m.onnx", example).passed
    assert not fxrebasin.verify(model, other, example).passed
    assert not fxrebasin.verify(other, tmp_path / "m.onnx", example).passed


def test_a_cancelling_output_loosens_no_other(tmp_path: Path) -> None:
    def function(h: torch.Tensor) -> torch.Tensor:
        return torch.cat([1e6 * h, (h + 3e4) - 3e4], 1)

    model, example = drawn(function, 1), torch.randn(3, 4)
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.last.weight *= 1.01
    fxrebasin.export_onnx(model, tmp_path / "m.onnx", example)
    assert not fxrebasin.verify(wrong, tmp_path / "m.onnx", example).passed


def test_graphs_are_compared_beside_masks() -> None:
    one = torch.tensor([[1.0, torch.finfo(torch.float32).min, math.nan, math.inf]])
    other = one.clone()
    assert _agree(one, other)
    other[0, 0] += 1e-3
    assert not _agree(one, other)
    assert not _agree(one, one.nan_to_num(0))
