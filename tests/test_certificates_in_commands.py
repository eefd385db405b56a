"""Certificates of every kind on the command line: what goes together, and what is said if not."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from fxrebasin.alignment import Alignment
from fxrebasin.permutation import Permutation
from tests.support.commands import document, invoke, lay_out, load
from tests.support.small_nets import draw

NET = ("transform", "nets:Net")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


def align(moved: str, ref: str, name: str, *more: str) -> None:
    invoke(
        *NET, *("--model-b", moved, "--ref", ref, "--out", f"{name}.pt"),
        *("--certificate", f"{name}.safetensors", *more),
    )  # fmt: skip


def test_alignments_are_composed_and_turned_round() -> None:
    align("c.pt", "b.pt", "c_to_b", "--symmetry", "all")
    align("c_to_b.pt", "a.pt", "b_to_a", "--symmetry", "all")
    files = ("c_to_b.safetensors", "b_to_a.safetensors")
    found = document("compose", *files, "--out", "e.safetensors")
    first, then, both = (Alignment.load(f"{n}.safetensors") for n in ("c_to_b", "b_to_a", "e"))
    assert both == then.compose(first)
    assert found["certificate_sha256"] == both.digest()
    invoke("compose", "e.safetensors", "--inverse", "--out", "i.safetensors")
    assert Alignment.load("i.safetensors") == both.inverse()
    invoke("apply", "nets:Net", "e.safetensors", "--weights", "c.pt", "--out", "x.pt")
    for name, tensor in load("b_to_a.pt").items():
        assert torch.allclose(load("x.pt")[name], tensor, rtol=1e-5, atol=1e-6), name


def test_a_permutation_and_an_alignment_do_not_become_one() -> None:
    align("c.pt", "b.pt", "c_to_b", "--symmetry", "all")
    align("b.pt", "a.pt", "b_to_a")
    for names in (("c_to_b", "b_to_a"), ("b_to_a", "c_to_b")):
        files = [f"{name}.safetensors" for name in names]
        said = invoke("compose", *files, "--out", "x.safetensors", code=2).output
        assert "a permutation and an alignment" in said
    assert not Path("x.safetensors").exists()


def test_of_an_alignment_it_is_said_what_it_is_where_only_units_are_permuted() -> None:
    align("c.pt", "a.pt", "c_to_a", "--symmetry", "all")
    invoke("export", "nets:Net", "--weights", "c.pt", "--out", "c.onnx")
    said = invoke("apply", "c.onnx", "c_to_a.safetensors", "--out", "x.onnx", code=2).output
    assert "it holds an alignment" in said
    assert not Path("x.onnx").exists()


def test_a_certificate_of_onnx_files_is_one_of_the_checkpoints_that_they_hold() -> None:
    """They do not hold how many batches BatchNorm has seen."""
    for name in "ac":
        invoke("export", "nets:Net", "--weights", f"{name}.pt", "--out", f"{name}.onnx")
    made = ("--out", "x.onnx", "--certificate", "p.safetensors")
    invoke("transform", "c.onnx", "--ref", "a.onnx", *made)
    assert not Permutation.load("p.safetensors").is_identity
    invoke("apply", "nets:Net", "p.safetensors", "--weights", "c.pt", "--out", "x.pt")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load("x.onnx").graph.initializer}
    moved = load("x.pt")
    assert torch.equal(moved["norm.num_batches_tracked"], load("c.pt")["norm.num_batches_tracked"])
    assert moved.keys() - held.keys() == {"norm.num_batches_tracked"}
    for name, array in held.items():
        if name in moved:
            assert torch.equal(moved[name], torch.from_numpy(array.copy())), name


STREAM = """
import torch
from torch import nn

class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.first, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, ids):
        stream = self.embed(ids)
        stream = stream + self.down(nn.functional.gelu(self.up(self.first(stream))))
        return self.head(self.last(stream))
"""


def test_an_alignment_is_undone_as_exactly_as_its_result_was_stored(monkeypatch) -> None:
    """Biases that were moved through weights come back as they were, the weights rounded."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "streams", raising=False)
    Path("streams.py").write_text(STREAM)
    names: dict[str, type[torch.nn.Module]] = {}
    exec(compile(STREAM, "streams.py", "exec"), names)
    for seed, name in enumerate("sr"):
        model = names["Stream"]()
        for at, parameter in enumerate(model.parameters()):
            parameter.data.copy_(draw(*parameter.shape, seed=20 * seed + at))
        torch.save(model.state_dict(), f"{name}.pt")
    shape = ("--input-shape", "2,4:int64")
    made = ("--out", "t.pt", "--certificate", "p.safetensors", "--symmetry", "all")
    invoke("transform", "streams:Stream", "--model-b", "s.pt", "--ref", "r.pt", *made, *shape)
    alignment = Alignment.load("p.safetensors")
    assert alignment.source.added or alignment.target.added
    undo = ("apply", "streams:Stream", "p.safetensors", "--inverse", *shape)
    found = document(*undo, "--weights", "t.pt", "--out", "u.pt")
    assert 1e-10 < found["equivalence"]["max_rel"] < found["equivalence"]["tolerance"] < 1e-4
    assert "tolerance is that of rounding" in str(found["equivalence"]["notes"])
    before, after = load("s.pt"), load("u.pt")
    for name, tensor in before.items():
        assert torch.allclose(after[name], tensor, rtol=1e-4, atol=1e-5), name
    changed = load("t.pt")
    changed["up.weight"][3] *= 1.001
    torch.save(changed, "t.pt")
    assert "another state" in invoke(*undo, "--weights", "t.pt", "--out", "v.pt", code=2).output
    assert not Path("v.pt").exists()
