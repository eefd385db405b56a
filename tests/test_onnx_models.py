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
from tests.support.onnx_proofs import assert_a_file_is_recovered
from tests.support.randomise import log10_factorial, randomise
from tests.support.small_vision import SMALL_VISION, small_vision

TEXT = ("gpt2", "bert", "llama", "t5", "distilbert")

TABLES = {
    ("swin_v2", False): ("relative_coords_table", (2, 2, 2, 2)),
    ("t5", True): ("@", (3, 3)),
}
"""Constants of modules that are weights in files, and the units that these let move besides.

Swin's four blocks read a table each. Of T5, dynamo computes what is added for places in advance,
so that each layer that reads it has a table of its own, and their heads an order of their own.
"""

ATTENTION = {"t5": "eager"}
"""Written out where PyTorch's exporters cannot take fused attention apart."""

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
    net, images = small_vision(name)
    return randomise(net), (images,)


def text(name: str) -> Example:
    pytest.importorskip("transformers")
    from tests.support.text_models import TEXT as BUILDERS

    torch.manual_seed(0)
    net, inputs = BUILDERS[name](ATTENTION.get(name, "sdpa"))
    return _ByPosition(randomise(net), tuple(inputs)), tuple(inputs.values())


CASES = [pytest.param(vision, name, id=name) for name in SMALL_VISION]
CASES += [pytest.param(text, name, id=name) for name in TEXT]


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_each_expert_has_an_order_of_its_own(name: str, tmp_path: Path) -> None:
    net, args = text(name)
    path = tmp_path / "b.onnx"
    fxrebasin.export_onnx(net, path, example_inputs=args)
    report = assert_a_file_is_recovered(path)
    wanted = fxrebasin.analyze(net, args).log10_order()
    table = log10_factorial(4)
    assert report.log10_order == pytest.approx(wanted + table)
    assert any("inv_freq" in tensor for tensor in report.certificate.layout)


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
    wanted = fxrebasin.analyze(net, args).log10_order()
    table, units = TABLES.get((name, dynamo), ("", ()))
    assert report.log10_order == pytest.approx(wanted + log10_factorial(*units))
    assert any(table in tensor for tensor in report.certificate.layout)
