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
from fxrebasin.models.torchvision_shim import ensure_torchvision
from tests.support.onnx_proofs import assert_a_file_is_recovered
from tests.support.randomise import randomise

VISION = (
    *("resnet18", "resnext50_32x4d", "densenet121", "mobilenet_v3_small", "efficientnet_b0"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "googlenet", "regnet_y_400mf"),
    *("swin_t", "convnext_tiny", "vit_b_16", "inception_v3"),
)
TEXT = ("gpt2", "bert", "llama", "t5", "distilbert", "roberta")
SIZES = {"vit_b_16": 224, "inception_v3": 96}
ORIGINAL_SIZE = 64

pytestmark = pytest.mark.slow

Example = tuple[nn.Module, tuple[Any, ...]]


class _ByPosition(nn.Module):
    """A model whose inputs have an order; the older exporter passes them by position."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *args: Any) -> Any:
        return self.net(**dict(zip(self.names, args, strict=True)))


def vision(name: str) -> Example:
    ensure_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    size = SIZES.get(name, ORIGINAL_SIZE)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = randomise(models.get_model(name, **options)).eval()
    return net, (torch.randn(2, 3, size, size),)


def text(name: str) -> Example:
    pytest.importorskip("transformers")
    from tests.support.text_models import TEXT as BUILDERS

    torch.manual_seed(0)
    net, inputs = BUILDERS[name]("sdpa")
    return _ByPosition(randomise(net), tuple(inputs)), tuple(inputs.values())


CASES = [pytest.param(vision, name, id=name) for name in VISION]
CASES += [pytest.param(text, name, id=name) for name in TEXT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(("build", "name"), CASES)
def test_the_group_is_that_of_the_module(
    build: Callable[[str], Example], name: str, dynamo: bool, tmp_path: Path
) -> None:
    net, args = build(name)
    path = tmp_path / "b.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, args, path, dynamo=dynamo, verbose=False, external_data=False)
    report = assert_a_file_is_recovered(path)
    assert report.log10_order == pytest.approx(fxrebasin.analyze(net, args).log10_order())
