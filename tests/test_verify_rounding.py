"""What `verify` says of models that differ by no more than float32 rounds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import fxrebasin
from tests.support.randomise import randomise

NOTE = "rounding in its own precision costs"
IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> nn.Sequential:
    found = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    randomise(found.append(nn.Linear(8 * 49, 4)))
    return found.eval()


def with_a_weight_off(net: nn.Sequential, factor: float) -> nn.Sequential:
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed[0].weight[0] *= factor
    return changed


def test_a_folded_file_is_told_from_a_wrong_one(net: nn.Sequential, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.onnx" for name in ("own", "folded", "wrong")]
    fxrebasin.export_onnx(net, paths[0], IMAGES)
    fxrebasin.export_onnx(net, paths[1], IMAGES, optimize=True)
    fxrebasin.export_onnx(with_a_weight_off(net, 1.0001), paths[2], IMAGES)
    assert fxrebasin.verify(net, paths[1], IMAGES).passed
    folded = fxrebasin.verify(paths[0], paths[1])
    assert not folded.passed
    assert any(NOTE in note for note in folded.notes)
    wrong = fxrebasin.verify(paths[0], paths[2])
    assert not wrong.passed
    assert not any(NOTE in note for note in wrong.notes)


def test_a_fused_module_is_told_from_a_wrong_one(net: nn.Sequential) -> None:
    layers = list(copy.deepcopy(net))
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(layers[0], layers[1])
    report = fxrebasin.verify(net, nn.Sequential(fused, *layers[2:]), IMAGES)
    assert not report.passed
    assert any(NOTE in note for note in report.notes)
    wrong = fxrebasin.verify(net, with_a_weight_off(net, 1.0001), IMAGES)
    assert not wrong.passed
    assert not any(NOTE in note for note in wrong.notes)
