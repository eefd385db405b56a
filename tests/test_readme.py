"""What the README shows works as it stands there, and what it points to exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from fxrebasin.cli import main

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
