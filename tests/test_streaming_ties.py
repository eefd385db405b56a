"""Tied tensors in files of `torch.save`, one at a time: both names get what is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.commands import document, invoke, load
from tests.support.small_nets import draw

NETS = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        stream = self.embed(ids)
        return self.head(self.norm(stream + self.down(self.up(stream).relu())))

def apart():
    return Tied(tied=False)
"""
LARGE = ("--max-memory", "1GiB")
pytestmark = pytest.mark.filterwarnings("ignore:.* holds float64, and the model float32")
IDS = torch.tensor([[1, 4, 9, 2], [0, 10, 3, 3]])


def made(name: str = "Tied") -> nn.Module:
    names: dict[str, type[nn.Module]] = {}
    exec(compile(NETS, "tied_nets.py", "exec"), names)
    return names[name]().double().eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("tied_nets", None)
    Path("tied_nets.py").write_text(NETS)
    for seed, name in enumerate("ab"):
        model = made()
        for at, parameter in enumerate(model.parameters()):
            parameter.data.copy_(draw(*parameter.shape, seed=10 * seed + at))
        torch.save(model.state_dict(), f"{name}.pt")
    yield tmp_path
    sys.modules.pop("tied_nets", None)


def outputs(state: dict[str, torch.Tensor], name: str = "Tied") -> torch.Tensor:
    model = made(name)
    model.load_state_dict(state)
    return model(IDS)


def read(path: str) -> dict[str, torch.Tensor]:
    return load_file(path) if path.endswith(".safetensors") else load(path)


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt"])
@pytest.mark.parametrize("model", ["Tied", "apart"])
def test_a_permuted_model_is_the_model(out: str, model: str) -> None:
    shape = ("--input-shape", "2,4:int64")
    pair = ("--model-b", "b.pt", "--ref", "a.pt", "--out", out)
    text = invoke("transform", f"tied_nets:{model}", *pair, *shape, *LARGE).output
    assert "moved      0 of" not in text
    found = read(out)
    assert torch.allclose(outputs(found, model), outputs(load("b.pt"), model), atol=1e-10)
    if model == "Tied":
        assert torch.equal(found["head.weight"], found["embed.weight"])
    if model == "Tied" and out == "o.pt":
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt"])
def test_merged_models_are_those_that_are_merged_in_memory(out: str) -> None:
    shape = ("--input-shape", "2,4:int64")
    given = ("tied_nets:Tied", "a.pt", "b.pt", *shape, "--method", "none")
    invoke("merge", *given, "--weights", "1,3", "--no-report", "--out", f"memory-{out}")
    invoke("merge", *given, "--weights", "1,3", "--no-report", "--out", out, *LARGE)
    invoke("interpolate", *given, "--t", "0.75", "--out", f"at-{out}", *LARGE)
    wanted = read(f"memory-{out}")
    for path in (out, f"at-{out}"):
        found = read(path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("stored_once", [True, False])
@pytest.mark.parametrize("model", ["Tied", "apart"])
def test_what_is_one_tensor_is_what_the_model_says_not_the_file(
    stored_once: bool, model: str
) -> None:
    if not stored_once:
        for path in ("a.pt", "b.pt"):
            torch.save({name: tensor.clone() for name, tensor in load(path).items()}, path)
    given = ("transform", f"tied_nets:{model}", "--model-b", "b.pt", "--ref", "a.pt")
    given = (*given, "--input-shape", "2,4:int64")
    whole = document(*given, "--out", "whole.safetensors")
    found = document(*given, "--out", "o.safetensors", *LARGE)
    for figure in ("distance_before", "distance_after", "objective_after"):
        assert found[figure] == pytest.approx(whole[figure], rel=1e-6)
    assert found["units_moved"] == whole["units_moved"] > 0
    wanted = read("whole.safetensors")
    assert all(torch.equal(tensor, wanted[n]) for n, tensor in read("o.safetensors").items())


@pytest.mark.parametrize("more", [(), LARGE])
def test_weights_for_the_other_name_of_a_tensor_are_refused(more: tuple[str, ...]) -> None:
    given = ("merge", "tied_nets:Tied", "a.pt", "b.pt", "--input-shape", "2,4:int64", *more)
    weights = ("--weights", "1,1", "--weights", "head*=0,1")
    said = invoke(*given, *weights, "--out", "o.safetensors", code=2).output
    assert "head.weight is one tensor with embed.weight" in said
    assert not Path("o.safetensors").exists()
    both = ("--weights", "1,1", "--weights", "*e*d*.weight=0,1", "--no-report")
    invoke(*given, *both, "--method", "none", "--out", "o.safetensors")
    assert torch.equal(read("o.safetensors")["head.weight"], load("b.pt")["embed.weight"])
