"""What the README shows works as it stands there, and what it points to exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch import nn

import fxrebasin
from fxrebasin.cli import main
from tests.support.small_nets import unsettled

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def small_model(seed: int) -> nn.Sequential:
    """A convolution net with statistics and affines that are not at their initial values."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model.eval()


def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {
        "model_a": small_model(1),
        "model_b": small_model(2),
        "images": torch.rand(4, 3, 8, 8),
        "labels": torch.arange(4),
    }
    assert len(blocks) >= 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "aligned.onnx",
        "b_to_a.safetensors",
        "line.png",
        "model_b.onnx",
        "units.png",
    }


def test_files_and_targets_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z]+)", README))
    assert all(f"\n{target}:" in makefile for target in targets), targets


def test_the_commands_have_these_options() -> None:
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
    lines = shell.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("fxrebasin")]
    assert {words[1] for words in commands} == set(main.commands)
    for _, name, *arguments in commands:
        context = main.commands[name].make_context(name, list(arguments), resilient_parsing=True)
        assert not context.args, f"{name}: {context.args} left over"


NETS = """
import torch
import transformers
from click.testing import CliRunner
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Linear(5, 9), nn.BatchNorm1d(9)
    def forward(self, x):
        return self.bn1(self.conv1(x)).relu()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.fc = nn.Sequential(Block()), nn.Linear(9, 3)
    def forward(self, x):
        return self.fc(self.layer1(x))
"""
DATA = """
import torch
import transformers
from click.testing import CliRunner
x = torch.linspace(-1, 1, 60).reshape(12, 5).sin()
def loader():
    return [x, x.flip(0) + 0.1]
def evaluate(model):
    with torch.no_grad():
        return float(model(x).square().mean())
"""


def lay_out_what_the_commands_name(folder: Path) -> None:
    """A small net for the large ones, and every file that a command reads and no other writes."""
    (folder / "readme_nets.py").write_text(NETS)
    (folder / "mydata.py").write_text(DATA)
    (folder / "recipe.yaml").write_text(
        "command: merge\nmodel: readme_nets:Net\nmodels: [a.pt, b.pt]\nout: of-recipe.pt\n"
    )
    nets: dict[str, Any] = {}
    exec(compile(NETS, "readme_nets.py", "exec"), nets)
    for seed, name in enumerate(("a", "b", "c", "start")):
        net = unsettled(nets["Net"](), seed)
        torch.save(net.state_dict(), f"{name}.pt")
        if name in "ab":
            fxrebasin.export_onnx(net, f"{name}0.onnx", torch.randn(2, 5))
    Path("a0.onnx").rename("a.onnx")
    b, c = (unsettled(nets["Net"](), seed) for seed in (1, 2))
    fxrebasin.match(c, ref=b).save("c_to_b.safetensors")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.BertConfig(vocab_size=20, intermediate_size=12, **sizes)
    for name in ("bert-for-news", "bert-for-reviews"):
        unsettled(transformers.BertForSequenceClassification(config)).save_pretrained(name)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one but the demo, which has tests of its own, in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    lay_out_what_the_commands_name(tmp_path)
    shell = "".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
    for large in ("torchvision:resnet18", "torchvision:vit_b_16"):
        assert large in shell
        shell = shell.replace(large, "readme_nets:Net")
    lines = [line for line in shell.splitlines() if line.startswith("fxrebasin ")]
    assert len(lines) > 15
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words != ["demo"]:
            again = [] if words[0] in ("inspect", "barrier", "verify") else ["--overwrite"]
            result = CliRunner().invoke(main, [*words, *again])
            assert result.exit_code == 0, f"{line}: {result.output}"
    named = {word for line in lines for word in shlex.split(line, comments=True)}
    written = {word for word in named if re.search(r"\.(pt|safetensors|onnx|svg|html|png)$", word)}
    assert {name for name in written if "{t}" not in name and not Path(name).exists()} == set()
    for name in ("readme_nets", "mydata"):
        sys.modules.pop(name, None)
