"""Running commands in this process, on a small model with checkpoints of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.models.by_name import build_model

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(7))
Y = (X.sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self, width=8, classes=2):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(torch.relu(self.norm(self.embed(x))))))


def loader():
    return [(X[:30], Y[:30]), (X[30:], Y[30:])]


def evaluate(model):
    y = model(X)
    return F.cross_entropy(y, Y), (y.argmax(1) == Y).float().mean()


def nothing():
    return 3
"""


def invoke(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process and check its exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def document(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json: one document, and nothing else on standard output."""
    found: dict[str, Any] = json.loads(invoke(*arguments, "--json").stdout)
    return found


def random_state(seed: int, width: int = 8, classes: int = 2) -> dict[str, torch.Tensor]:
    """A state of the model whose statistics and affines are not those of a new one."""
    model = build_model(f"nets:Net?width={width}&classes={classes}")
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) + 0.1
        if name.startswith("norm.") and tensor.is_floating_point()
        else torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.tensor(seed)
        for name, tensor in model.state_dict().items()
    }


def lay_out(folder: Path) -> None:
    """Checkpoints in the working directory: a, b (a with its units in another order), c (b and
    noise), d (another one)."""
    (folder / "nets.py").write_text(SOURCE)
    a = random_state(1)
    model = build_model("nets:Net")
    model.load_state_dict(a)
    order = fxrebasin.analyze(model, torch.randn(2, 3)).random(1)
    b = order.permute_state_dict(a)
    noise = random_state(3)
    c = {k: v + 0.05 * noise[k] if v.is_floating_point() else v for k, v in b.items()}
    for name, state in {"a": a, "b": b, "c": c, "d": random_state(4)}.items():
        torch.save(dict(state), folder / f"{name}.pt")


def load(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save."""
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same names, dtypes and, up to rounding, values."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, n=name: f"{n}: {text}")
