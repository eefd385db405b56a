"""Numbers that another dtype cannot hold are told wherever tensors are written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from fxrebasin.cli import main
from fxrebasin.errors import FxRebasinWarning
from fxrebasin.rounding import rounded
from tests.support.randomise import randomise

CASES = {
    "beyond": (torch.tensor([1.0, 7e4, -1e9]), torch.float16, 2),
    "the largest": (torch.tensor([65504.0, 65519.0]), torch.float16, 0),
    "infinite before": (torch.tensor([torch.inf, torch.nan, 1.0]), torch.float16, 0),
    "the least of float32": (torch.tensor([torch.finfo(torch.float32).min]), torch.bfloat16, 1),
    "of float64": (torch.tensor([1e300], dtype=torch.float64), torch.float32, 1),
    "a wider one": (torch.tensor([6e4]).half(), torch.float32, 0),
    "of few bits": (torch.tensor([1e9]), torch.float8_e5m2, 1),
    "whole": (torch.tensor([70000]), torch.int64, 0),
    "none": (torch.zeros(0), torch.float16, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_told(name: str) -> None:
    tensor, dtype, lost = CASES[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = rounded("w", tensor, dtype)
    assert made.dtype is dtype
    assert torch.equal(made.float().nan_to_num(1), tensor.to(dtype).float().nan_to_num(1))
    counts = [str(item.message) for item in told if item.category is FxRebasinWarning]
    assert [f"w: {lost} of {tensor.numel()} " in text for text in counts] == [True] * bool(lost)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def stored(path: Path, seed: int, largest: float) -> Path:
    model: Any = randomise(net(), seed)
    with torch.no_grad():
        model[0].bias[1] = largest
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("more", [(), ("--max-memory", "1GB")], ids=["in memory", "streamed"])
@pytest.mark.parametrize("command", ["transform", "merge"])
def test_commands_tell_it_in_one_line(command: str, more: tuple[str, ...], tmp_path: Path) -> None:
    a = stored(tmp_path / "a.safetensors", 0, 2e5)
    for largest, told in ((2e5, 1), (2.0, 0)):
        b = stored(tmp_path / "b.safetensors", 1, largest)
        files = ["--model-b", b, "--ref", a] if command == "transform" else [b, b]
        out = tmp_path / f"{told}.safetensors"
        words = [command, f"{__name__}:net", *files, "--out", out, "--dtype", "float16", *more]
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            done = CliRunner().invoke(main, [*map(str, words), "--input-shape", "2,4"])
        assert done.exit_code == 0, done.output
        lines = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
        assert len(lines) == told, done.stderr
        assert all("0.bias: 1 of 6 numbers are beyond float16" in line for line in lines)
        assert int(load_file(out)["0.bias"].isinf().sum()) == told


def test_commands_tell_that_a_model_has_fewer_digits_than_a_file(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        save_file(randomise(net(), seed).double().state_dict(), tmp_path / f"{name}.safetensors")
    files = ["--model-b", tmp_path / "b.safetensors", "--ref", tmp_path / "a.safetensors"]
    words = ["transform", f"{__name__}:net", *files, "--out", tmp_path / "out.safetensors"]
    for module, told in ((f"{__name__}:net", 2), (f"{__name__}:wide_net", 0)):
        words[1] = module
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            done = CliRunner().invoke(
                main, [*map(str, words), "--input-shape", "2,4", "--overwrite"]
            )
        assert done.exit_code == 0, done.output
        assert done.stderr.count("holds float64, and the model float32") == told
        assert load_file(tmp_path / "out.safetensors")["0.bias"].dtype is torch.float64


def wide_net() -> nn.Module:
    return net().double()
