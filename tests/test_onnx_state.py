"""An ONNX file holds a model's parameters under their names, bit for bit, unless asked to fold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest
import timm
import torch
import torchvision
import transformers as hf
from torch import nn

from fxrebasin.errors import CheckpointError, ExportError
from fxrebasin.exporters.onnx import write
from fxrebasin.exporters.onnx.export import export_onnx
from fxrebasin.exporters.onnx.names import names_in_file
from fxrebasin.exporters.onnx.state import check_state, state_of
from fxrebasin.exporters.onnx.wire import stored_initializers
from tests.support.small_nets import ManyOutputs, Residual, draw, unsettled

TOKENS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
IDS = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(1))


def image(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (draw(2, 3, size, size),), {}


def text(**more: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (), {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **more}


def _gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=30, bos_token_id=1, eos_token_id=2)
    )


def _t5() -> nn.Module:
    config = hf.T5Config(
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        vocab_size=30,
        tie_word_embeddings=True,
    )
    return hf.T5ForConditionalGeneration(config)


def _llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(intermediate_size=24, **TOKENS))


Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=4), image(32)),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=4), image(32)),
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=4), image(64)),
    "swin": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=4
        ),
        image(32),
    ),
    "vit": (lambda: timm.create_model("test_vit", num_classes=4, img_size=32), image(32)),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=4), image(32)),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=4), image(32)),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=4), image(32)),
    "bert": (lambda: hf.BertModel(hf.BertConfig(intermediate_size=24, **TOKENS)), text()),
    "gpt2": (_gpt2, text(use_cache=False)),
    "llama": (_llama, text(use_cache=False)),
    "t5": (_t5, ((), {"input_ids": IDS, "decoder_input_ids": IDS[:, :4], "use_cache": False})),
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, batch_first=True), ((draw(2, 3, 4),), {})),
}


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {one.name: one for one in onnx.load(path).graph.initializer}


def differing(path: Path, model: nn.Module) -> list[str]:
    """Parameters that the file lacks or has with other bits, as onnx reads it."""
    found = initializers(path)
    return [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in found
        or onnx.numpy_helper.to_array(found[name]).shape != tuple(parameter.shape)
        or onnx.numpy_helper.to_array(found[name]).tobytes() != parameter.detach().numpy().tobytes()
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_an_initializer_bit_for_bit(name, tmp_path):
    make, (args, kwargs) = MODELS[name]
    torch.manual_seed(0)
    model = unsettled(make())
    report = export_onnx(model, tmp_path / "m.onnx", args, kwargs, dynamic_batch=False)
    assert report.passed
    assert differing(tmp_path / "m.onnx", model) == []
    statistics = {name for name, _ in model.named_buffers() if "running_" in name}
    assert statistics <= initializers(tmp_path / "m.onnx").keys()


def test_both_names_of_a_tied_weight_are_read_where_they_are_used(tmp_path):
    model = unsettled(_gpt2())
    assert model.lm_head.weight is model.transformer.wte.weight
    args, kwargs = text(use_cache=False)
    export_onnx(model, tmp_path / "m.onnx", args, kwargs, dynamic_batch=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    read = {name for node in onnx.load(tmp_path / "m.onnx").graph.node for name in node.input}
    assert {"lm_head.weight", "transformer.wte.weight"} <= read


class Spare(nn.Module):
    """Has a parameter that no operator reads, and returns another as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.unread = nn.Parameter(torch.ones(5))
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x) * self.scale, self.scale


def test_parameters_that_are_not_read_or_returned_as_they_are_are_kept(tmp_path):
    model = unsettled(Spare())
    report = export_onnx(model, tmp_path / "m.onnx", draw(2, 3))
    assert differing(tmp_path / "m.onnx", model) == []
    assert any("unread" in note for note in report.notes)


def test_an_input_keeps_its_name_before_a_parameter(tmp_path):
    args = (draw(2, 4), (draw(2, 4), draw(2, 4)))
    model = unsettled(ManyOutputs())
    export_onnx(model, tmp_path / "m.onnx", args)
    assert names_in_file(state_of(model), ["x"])["x"] == "x_1"
    found = onnx.numpy_helper.to_array(initializers(tmp_path / "m.onnx")["x_1"])
    assert found.tobytes() == model.x.detach().numpy().tobytes()


def test_folding_is_an_option_that_says_what_it_folded(tmp_path):
    model = unsettled(Residual())
    plain = export_onnx(model, tmp_path / "plain.onnx", draw(2, 3, 8, 8), dynamic_batch=False)
    report = export_onnx(
        model, tmp_path / "m.onnx", draw(2, 3, 8, 8), dynamic_batch=False, optimize=True
    )
    assert plain.notes == ()
    assert report.notes[0].startswith("folded: the file lacks 2 tensors of the state (norm.weight")
    assert "other values for 2 tensors of the state (stem.weight, stem.bias)" in report.notes[1]
    assert set(differing(tmp_path / "m.onnx", model)) == {
        *("norm.weight", "norm.bias"),
        *("stem.weight", "stem.bias"),
    }


def test_a_file_with_another_bit_is_refused(tmp_path):
    model = unsettled(nn.Linear(4, 3))
    export_onnx(model, tmp_path / "m.onnx", draw(2, 4))
    names = names_in_file(state_of(model), ["input"])
    check_state(tmp_path / "m.onnx", model, names)
    with torch.no_grad():
        model.weight[1, 2] = torch.nextafter(model.weight[1, 2], torch.tensor(9.0))
    with pytest.raises(ExportError, match="weight of the file have other values"):
        check_state(tmp_path / "m.onnx", model, names)
    other = nn.Sequential(model)
    names = names_in_file(state_of(other), ["input"])
    with pytest.raises(ExportError, match=r"the file lacks 0\.weight"):
        check_state(tmp_path / "m.onnx", other, names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_kept_too(dtype, tmp_path):
    model = unsettled(nn.Linear(4, 3)).to(dtype)
    export_onnx(model, tmp_path / "m.onnx", draw(2, 4).to(dtype))
    assert differing(tmp_path / "m.onnx", model) == []


def test_tied_weights_are_stored_once_in_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 1000)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(400, 8)
            self.head = nn.Linear(8, 400, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    model = unsettled(Tied())
    assert export_onnx(model, tmp_path / "m.onnx", torch.tensor([[3, 5], [7, 9]])).passed
    assert differing(tmp_path / "m.onnx", model) == []
    (data,) = tmp_path.glob("m.onnx.*.data")
    assert data.stat().st_size == 400 * 8 * 4


def test_initializers_are_found_without_reading_them(tmp_path):
    model = unsettled(nn.Linear(40, 30))
    export_onnx(model, tmp_path / "m.onnx", draw(2, 40))
    found = {one.header.name: one for one in stored_initializers(tmp_path / "m.onnx")}
    place = found["weight"].place
    stored = place.path.read_bytes()[place.offset : place.offset + place.size]
    assert stored == model.weight.detach().numpy().tobytes()
    assert not found["weight"].header.raw_data
    whole = (tmp_path / "m.onnx").read_bytes()
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is cut off, or is not an ONNX model"):
            list(stored_initializers(tmp_path / "cut.onnx"))
