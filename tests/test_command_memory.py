"""The command `transform` has the weights of checkpoints in memory once, in files as before."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import fxrebasin
from benchmarks.support.peak_memory import peaks_of
from fxrebasin.cli import main, work
from fxrebasin.models.by_name import build_model
from fxrebasin.models.emptied import Emptied, is_emptied
from tests.support.small_nets import draw, unsettled

pytestmark = pytest.mark.filterwarnings("ignore:.* holds float64, and the model float32")

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.embed, self.again = nn.Linear(3, width), nn.Linear(width, width)
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, 2)
        self.again.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.again(self.embed(x).relu()))))

class Penalised(Net):
    def __init__(self):
        super().__init__()
        weight = self.again.weight
        self.penalty = lambda: weight.sum()

class Choosing(Net):
    def forward(self, x):
        h = self.embed(x).relu()
        if float(h.sum()) > 1:
            h = self.again(h)
        return self.head(torch.tanh(self.norm(h)))

class Old(Net):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 2.0))

    def forward(self, x):
        return super().forward(x * self.scale[:3])

    def _load_from_state_dict(self, state, prefix, *rest):
        state.setdefault(f"{prefix}scale", self.scale.detach())
        super()._load_from_state_dict(state, prefix, *rest)

def shared():
    return _ONE

_ONE = Net()

class Wide(nn.Sequential):
    def __init__(self, width=1024):
        inner = (nn.Linear(width, width, bias=False) for _ in range(8))
        super().__init__(
            nn.Linear(64, width, bias=False), nn.ReLU(),
            *(part for layer in inner for part in (layer, nn.ReLU())),
            nn.Linear(width, 8, bias=False),
        )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("nets", None)


def written(name: str, *options: str) -> dict[str, bytes]:
    """What the command writes, by the name of the file."""
    given = ["transform", f"nets:{name}", "--model-b", "b.pt", "--ref", "a.pt", "--out", "o.pt"]
    given += ["--certificate", "p.safetensors", "--seed", "3", "--overwrite", *options]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.name[0] in "op"}


def named(model: nn.Module) -> Iterator[tuple[int, tuple[str, nn.Parameter]]]:
    return enumerate(model.named_parameters())


def save_pair(name: str, dtype: torch.dtype, without: str = "") -> None:
    for seed, side in enumerate("ab", start=1):
        model = unsettled(copy.deepcopy(build_model(f"nets:{name}")), seed)
        drawn = {n: draw(*p.shape, seed=10 * seed + k) for k, (n, p) in named(model)}
        state = {**model.state_dict(), **drawn}
        kept = {n: t for n, t in state.items() if n != without}
        wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in kept.items()}
        torch.save(wide, f"{side}.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["Net", "Penalised", "Choosing", "shared"])
def test_what_is_written_is_what_is_written_with_all_weights_in_the_model(
    name: str, dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pair(name, dtype)
    options = ("--input-shape", "4,3")
    inputs = {path: Path(path).read_bytes() for path in ("a.pt", "b.pt")}
    found = [written(name, *options)]
    monkeypatch.setattr(work, "open_emptied_bench", work.open_bench)
    found.append(written(name, *options))
    assert found[0].keys() == {"o.pt", "p.safetensors"}
    assert found[0] == found[1]
    assert fxrebasin.Permutation.load("p.safetensors").units_moved > 0
    assert inputs == {path: Path(path).read_bytes() for path in inputs}


def test_inferred_inputs_what_is_ignored_and_exports(folder: Path) -> None:
    save_pair("Net", torch.bfloat16)
    a = torch.load("a.pt")
    torch.save({**a, "head.weight": torch.ones(5, 6), "head.bias": torch.ones(5)}, "a.pt")
    found = written("Net", "--ignore", "head.*", "--onnx", "o.onnx")
    b, moved = torch.load("b.pt"), torch.load("o.pt")
    order = fxrebasin.Permutation.load("p.safetensors").permute_state_dict(b)
    assert "o.onnx" in found
    assert all(torch.equal(tensor, order[name]) for name, tensor in moved.items())
    net = build_model("nets:Net").eval()
    net.load_state_dict(moved)
    assert fxrebasin.verify(net, "o.onnx", torch.randn(2, 3)).passed


def test_a_parameter_that_a_file_lacks_is_that_of_the_model(folder: Path) -> None:
    save_pair("Old", torch.float32, without="scale")
    written("Old", "--input-shape", "4,3")
    first, second = (build_model("nets:Old") for _ in "ab")
    first.load_state_dict(torch.load("b.pt"), strict=False)
    second.load_state_dict(torch.load("o.pt"), strict=False)
    x = torch.randn(4, 3)
    assert torch.allclose(first.eval()(x), second.eval()(x), atol=1e-5)


def test_the_model_of_the_command_is_emptied(folder: Path) -> None:
    assert is_emptied(Emptied(build_model("nets:Net")).model)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_two_checkpoints_and_a_few_classes(folder: Path, dtype: torch.dtype) -> None:
    def peak(name: str) -> int:
        for seed, side in enumerate("ab"):
            torch.manual_seed(seed)
            state = build_model(f"nets:{name}").state_dict()
            made = {n: torch.randn(t.shape).to(dtype) for n, t in state.items()}
            save_file(made, f"{side}.safetensors")
        given = ["transform", f"nets:{name}", "--model-b", "b.safetensors", "--ref"]
        given += ["a.safetensors", "--out", "o.safetensors", "--input-shape", "2,64", "--overwrite"]
        command = [sys.executable, "-m", "fxrebasin", *given]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, most = peaks_of(process)
        assert process.returncode == 0
        return most

    little = peak("Wide?width=8")
    wide = min(peak("Wide") for _ in range(2))  # what an allocator keeps at hand differs by run
    size, one_class = Path("a.safetensors").stat().st_size, 4 * 1024**2
    assert size == pytest.approx(8 * 1024**2 * dtype.itemsize, rel=0.05)
    assert wide - little < 2 * size + 9 * one_class
