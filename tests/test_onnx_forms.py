"""Files in the forms of optimum, ultralytics and onnxruntime's optimiser: orders, and recovery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import GraphProto, NodeProto
from torch import nn

import fxrebasin
from tests.support import onnx_forms as forms
from tests.support.onnx_graphs import planted
from tests.support.onnx_proofs import assert_a_file_is_recovered
from tests.support.randomise import log10_factorial, randomise

pytest.importorskip("transformers")

from tests.support.text_models import HEADS, HIDDEN, LAYERS, TEXT, WIDTH
from tests.support.vision_models import VISION

pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = pytest.mark.slow
DECODER = log10_factorial(WIDTH, *[HIDDEN] * LAYERS)
"""Keys and values are outputs, so that heads and what is inside them stay as they are."""


def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(TEXT[name]("eager")[0]).eval()


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in _nodes(onnx.load(path).graph))


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


@SLOW
@pytest.mark.parametrize(
    ("name", "heads", "size", "free"),
    [
        ("gpt2", HEADS, 8, log10_factorial(WIDTH, 4 * WIDTH, 4 * WIDTH)),
        ("llama", 2, 8, log10_factorial(32, HIDDEN, HIDDEN, *[2] * 2 * LAYERS)),
    ],
)
def test_decoders_with_their_cache(name, heads, size, free, tmp_path):
    path = tmp_path / "model.onnx"
    forms.decoder_with_past(drawn(name), heads, size, path)
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(free)


@SLOW
def test_an_encoder_has_the_order_of_the_module(tmp_path):
    net, path = drawn("t5"), tmp_path / "encoder_model.onnx"
    forms.encoder(net, path)
    inputs = {name: TEXT["t5"]("eager")[1][name] for name in ("input_ids", "attention_mask")}
    wanted = fxrebasin.analyze(net.get_encoder(), example_kwargs=inputs).log10_order()
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(wanted)


@SLOW
@pytest.mark.parametrize("past", [False, True])
def test_decoders_beside_an_encoder(past, tmp_path):
    path = tmp_path / "decoder_model.onnx"
    forms.decoder(drawn("t5"), WIDTH, HEADS, path, past=past)
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(DECODER)


@SLOW
def test_both_branches_of_a_merged_decoder_count(tmp_path):
    net, path = drawn("t5"), tmp_path / "decoder_model_merged.onnx"
    first = forms.decoder(net, WIDTH, HEADS, tmp_path / "first.onnx", past=False)
    following = forms.decoder(net, WIDTH, HEADS, tmp_path / "following.onnx", past=True)
    onnx.save(forms.merged(first, following), path)
    assert kinds(path)["If"] == 1
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(DECODER)


@SLOW
def test_layers_that_onnxruntime_fused(tmp_path):
    from onnxruntime.transformers import optimizer

    torch.manual_seed(0)
    net, path, fused = drawn("bert"), tmp_path / "model.onnx", tmp_path / "fused.onnx"
    inputs = TEXT["bert"]("eager")[1]
    axes = {0: forms.BATCH, 1: forms.STEPS}
    names = {"input_ids": axes, "attention_mask": axes}
    both = _ByPosition(net)
    forms.written(both, tuple(inputs.values()), path, names, {"last_hidden_state": axes})
    optimizer.optimize_model(
        str(path), "bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=0
    ).save_model_to_file(str(fused))
    found = kinds(fused)
    assert found["SkipLayerNormalization"] == 2 * LAYERS
    assert found["BiasGelu"] == LAYERS
    wanted = fxrebasin.analyze(both, tuple(inputs.values())).log10_order()
    assert assert_a_file_is_recovered(fused).log10_order == pytest.approx(wanted)
    for number, (one, two) in enumerate(((path, fused), (fused, path))):
        planted(two, tmp_path / f"a{number}.onnx")
        report = fxrebasin.onnx_transform(
            one, ref=tmp_path / f"a{number}.onnx", out=tmp_path / f"out{number}.onnx"
        )
        assert report.distance_after == 0 < report.distance_before


class _ByPosition(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(input_ids=ids, attention_mask=mask).last_hidden_state
        return found


@SLOW
@pytest.mark.parametrize(
    ("output", "attention"), [("logits", "sdpa"), ("last_hidden_state", "eager")]
)
def test_a_vision_transformer_has_the_order_of_the_module(output, attention, tmp_path):
    torch.manual_seed(0)
    net, inputs = VISION["vit"](attention)
    net = randomise(net if output == "logits" else net.vit).eval()
    path = tmp_path / "model.onnx"
    forms.images(net, inputs["pixel_values"], output, path)
    wanted = fxrebasin.analyze(forms.Images(net, output), inputs["pixel_values"]).log10_order()
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(wanted)


@SLOW
def test_a_detector_has_the_order_of_the_module(tmp_path):
    torch.manual_seed(0)
    expected = torch.arange(8.0).view(1, 8, 1, 1)
    net, path = randomise(forms.Detector()).eval(), tmp_path / "detector.onnx"
    with torch.no_grad():
        net.expected.weight.copy_(expected)
    forms.detector(net, path)
    wanted = fxrebasin.analyze(net, torch.randn(1, 3, 64, 64)).log10_order()
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(wanted)


def test_a_loop_has_the_order_of_the_module(tmp_path):
    torch.manual_seed(0)
    net, path = randomise(forms.Walk()).eval(), tmp_path / "walk.onnx"
    forms.walk(net, path)
    assert kinds(path)["Loop"] == 1
    assert assert_a_file_is_recovered(path).log10_order == pytest.approx(log10_factorial(6))
