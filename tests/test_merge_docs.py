"""The page for people who come from rebasin runs as it stands, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fxrebasin
from fxrebasin.demo.networks import DigitsResNet
from tests.support.small_nets import unsettled

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "from-rebasin.md").read_text(encoding="utf-8")


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 1, 8, 8), torch.arange(12) % 10
    data = TensorDataset(inputs, targets)

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(inputs), targets))

    names: dict[str, object] = {
        "model_a": unsettled(DigitsResNet(4), 1),
        "model_b": unsettled(DigitsResNet(4), 2),
        "train_dl": DataLoader(data, batch_size=6, shuffle=True),
        "evaluate": evaluate,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        exec(compile(block, "from-rebasin.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"barrier.png"}
    assert isinstance(names["merged"], DigitsResNet)
    assert isinstance(names["mended"], nn.Module)


def test_what_the_page_names_exists() -> None:
    used = set(re.findall(r"fxrebasin\.(\w+)\(", PAGE))
    used |= {"match", "transform", "apply", "analyze", "merge_many", "align_many", "recalibrate"}
    assert {"interpolate", "barrier", "plot_barrier", "repair", "merge_stats"} <= used
    for name in used:
        assert name in fxrebasin.__all__, name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
