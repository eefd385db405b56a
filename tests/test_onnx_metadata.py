"""An ONNX file says which weights, which permutation and which versions it was made of."""

from __future__ import annotations

import hashlib
import json

import onnx
import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.storage.digests import state_digest
from tests.support.small_nets import draw, mlp, unsettled


def origin(path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_file_says_what_it_was_made_of(tmp_path):
    a, b = unsettled(mlp(), 1), unsettled(mlp(), 2)
    x = draw(2, 6)
    result = fxrebasin.transform(b, ref=a, example_inputs=x)
    fxrebasin.export_onnx(result, tmp_path / "m.onnx", x)
    found = origin(tmp_path / "m.onnx")
    certificate = result.meta["fxrebasin"].certificate
    certificate.save(tmp_path / "p.safetensors")
    saved = hashlib.sha256((tmp_path / "p.safetensors").read_bytes()).hexdigest()
    assert found["fxrebasin.certificate"] == saved
    assert found["fxrebasin.model"] == state_digest(b.state_dict())
    assert found["fxrebasin.reference"] == state_digest(a.state_dict())
    assert found["fxrebasin.state"] == state_digest(result.state_dict())
    assert len({found[f"fxrebasin.{name}"] for name in ("model", "reference", "state")}) == 3
    assert json.loads(found["fxrebasin.versions"])["torch"] == torch.__version__
    options = json.loads(found["fxrebasin.options"])
    assert options["dynamic"] == {"input": {"0": "batch"}}
    assert options["optimize"] is False
    back = certificate.inverse().permute_state_dict(result.state_dict())
    assert state_digest(back) == found["fxrebasin.model"]


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    a, b = unsettled(mlp(), 1), unsettled(mlp(), 2)
    for name in ("one", "two"):
        result = fxrebasin.transform(b, ref=a, example_inputs=draw(2, 6))
        fxrebasin.export_onnx(result, tmp_path / f"{name}.onnx", draw(2, 6))
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_model_of_another_origin_has_its_state_only(tmp_path):
    model = unsettled(nn.Linear(3, 2))
    fxrebasin.export_onnx(model, tmp_path / "m.onnx", draw(2, 3), dynamic_batch=False, opset=21)
    found = origin(tmp_path / "m.onnx")
    assert found["fxrebasin.state"] == state_digest(model.state_dict())
    assert not found.keys() & {"fxrebasin.certificate", "fxrebasin.model", "fxrebasin.reference"}
    assert json.loads(found["fxrebasin.options"])["opset"] == 21


def test_a_digest_tells_bits_names_types_and_shapes_apart():
    state = {"a": torch.tensor([0.0, 1.0]), "b": torch.ones(2, dtype=torch.bfloat16)}
    others = [
        {**state, "a": torch.tensor([-0.0, 1.0])},
        {**state, "a": torch.tensor([[0.0, 1.0]])},
        {**state, "b": torch.ones(2, dtype=torch.float16)},
        {"a": state["a"], "c": state["b"]},
    ]
    digests = {state_digest(one) for one in (state, *others)}
    assert len(digests) == 5
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)


class Windowed(nn.Module):
    """Heads that mix what is in one window; on other sides than it takes its graph would run."""

    def __init__(self, heads: int = 4, width: int = 3, window: int = 4) -> None:
        super().__init__()
        self.heads, self.width, self.window = heads, width, window
        self.first = nn.Conv2d(3, heads * width, 32, stride=32)
        self.last = nn.Linear(heads * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        batch, _, height, side = x.shape
        torch._check(height % self.window == 0)
        torch._check(side % self.window == 0)
        rows, columns = height // self.window, side // self.window
        x = x.reshape(-1, self.width, rows, self.window, columns, self.window)
        x = x - x.mean((3, 5), keepdim=True)
        x = x.permute(0, 1, 3, 5, 2, 4).reshape(batch * self.heads, self.width, -1, rows * columns)
        x = (x.softmax(1) * x.relu()).sum(2)
        return self.last(x.reshape(batch, self.heads * self.width, -1).mean(-1))


def test_an_image_size_that_the_model_refuses_says_nothing_of_its_file(tmp_path):
    model, x = unsettled(Windowed()).eval(), draw(2, 3, 128, 128)
    path = tmp_path / "m.onnx"
    assert fxrebasin.export_onnx(model, path, x).passed
    sizes = json.loads(origin(path)["fxrebasin.sizes"])
    assert sizes[0] == {"batch": 2, "height": 128, "width": 128}
    assert len(sizes) > 1
    own, of_file = fxrebasin.analyze(model, x), fxrebasin.analyze(path)
    assert of_file.log10_order() == pytest.approx(own.log10_order())
    stripped = onnx.load(path)
    del stripped.metadata_props[:]
    assert fxrebasin.analyze(stripped).log10_order() < own.log10_order()


@pytest.mark.parametrize(
    "said", ["{", "3", '[{"height": 0, "width": 8}]', '[{"width": 1e9}, 4]', '[{"height": "8"}]']
)
def test_sizes_that_make_no_sense_are_not_tried(said, tmp_path):
    path = tmp_path / "m.onnx"
    fxrebasin.export_onnx(unsettled(Windowed()).eval(), path, draw(2, 3, 128, 128))
    file = onnx.load(path)
    for entry in file.metadata_props:
        entry.value = said if entry.key == "fxrebasin.sizes" else entry.value
    alone = onnx.load(path)
    del alone.metadata_props[:]
    assert fxrebasin.analyze(file).log10_order() == fxrebasin.analyze(alone).log10_order()
