"""Models as both of PyTorch's exporters write them: the same group, recovered bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from fxrebasin.models.torchvision_shim import ensure_torchvision
from tests.support.onnx_graphs import planted
from tests.support.randomise import randomise

VISION = (
    *("resnet18", "resnext50_32x4d", "densenet121", "mobilenet_v3_small", "efficientnet_b0"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "googlenet", "regnet_y_400mf"),
    *("swin_t", "convnext_tiny", "vit_b_16", "inception_v3"),
)
TEXT = ("gpt2", "bert", "llama", "t5", "distilbert", "roberta")
SIZES = {"swin_t": 64, "vit_b_16": 224, "inception_v3": 96}

pytestmark = pytest.mark.slow


def vision(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    ensure_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    net = randomise(models.get_model(name)).eval()
    return net, (torch.randn(2, 3, size, size),), {}


def text(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    pytest.importorskip("transformers")
    from tests.support.text_models import TEXT as BUILDERS

    torch.manual_seed(0)
    net, inputs = BUILDERS[name]("sdpa")
    return randomise(net), (), inputs


CASES = [pytest.param(vision, name, id=name) for name in VISION]
CASES += [pytest.param(text, name, id=name) for name in TEXT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(("build", "name"), CASES)
def test_the_group_is_that_of_the_module(
    build: Callable[..., Any], name: str, dynamo: bool, tmp_path: Path
) -> None:
    net, args, kwargs = build(name)
    path, a, out = (tmp_path / file for file in ("b.onnx", "a.onnx", "out.onnx"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                *(net, args, path),
                **{"kwargs": kwargs, "dynamo": dynamo, "verbose": False, "external_data": False},
            )
        except Exception as error:  # noqa: BLE001 - whatever the exporter is not able to do
            pytest.skip(f"torch.onnx.export: {type(error).__name__}")
    planted(path, a)
    report = fxrebasin.onnx_transform(path, ref=a, out=out)
    wanted = fxrebasin.analyze(net, args or None, kwargs or None).log10_order()
    assert report.log10_order == pytest.approx(wanted)
    found, there = read(out).parsed.tensors, read(a).parsed.tensors
    assert {n: bytes_of(t) for n, t in found.items()} == {n: bytes_of(t) for n, t in there.items()}
