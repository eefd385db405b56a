"""What a caller chooses is checked before any work, and reaches every call that takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import InputError
from fxrebasin.exporters.checkpoint import load_state_dict, save_state_dict
from tests.support.randomise import log10_factorial as f

VECTORS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Signed(nn.Module):
    """Units whose sign a buffer holds, once for those that leave and once for those that enter."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("first_sign", torch.tensor([1, -1, 2, -2, 3, -3]))
        self.register_buffer("next_sign", torch.tensor([3, 1, 2, -1, -3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave((self.enter(x) * self.first_sign).relu() * self.next_sign)


def signed(seed: int = 0) -> Signed:
    torch.manual_seed(seed)
    return Signed()


CALLS: dict[str, Callable[..., Any]] = {
    "analyze": lambda a, b, **options: fxrebasin.analyze(b, VECTORS, **options),
    "match": lambda a, b, **options: fxrebasin.match(b, a, VECTORS, **options),
    "apply": lambda a, b, **options: fxrebasin.apply(
        b, fxrebasin.analyze(b, VECTORS).identity(), VECTORS, **options
    ),
    "transform": lambda a, b, **options: fxrebasin.transform(b, a, VECTORS, **options),
    "verify": lambda a, b, **options: fxrebasin.verify(a, a, VECTORS, **options),
    "export_onnx": lambda a, b, **options: fxrebasin.export_onnx(b, "b.onnx", VECTORS, **options),
    "align_many": lambda a, b, **options: fxrebasin.align_many(
        [a, b], example_inputs=VECTORS, **options
    ),
    "merge_many": lambda a, b, **options: fxrebasin.merge_many(
        [a, b], "merge_many", example_inputs=VECTORS, **options
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_pattern_that_fits_nothing_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no buffer 'sign'.*first_sign, next_sign"):
        CALLS[name](signed(), signed(1), state_buffers=["*_sign", "sign"])
    with pytest.raises(InputError, match="pass a list"):
        CALLS[name](signed(), signed(1), state_buffers="*_sign")
    CALLS[name](signed(), signed(1), state_buffers=["*_sign"])


def test_declared_buffers_move_with_their_units() -> None:
    a = signed()
    assert fxrebasin.analyze(a, VECTORS).classes == ()
    found = fxrebasin.analyze(a, VECTORS, state_buffers=["*_sign"])
    assert found.log10_order() == pytest.approx(f(6))
    b = signed()
    b.load_state_dict(found.random(1).permute_state_dict(a.state_dict()))
    p = fxrebasin.match(b, a, VECTORS, state_buffers=["first_sign", "next_sign"])
    moved = p.permute_state_dict(b.state_dict())
    assert all(torch.equal(tensor, a.state_dict()[name]) for name, tensor in moved.items())
    report = fxrebasin.transform(b, a, VECTORS, state_buffers=["*_sign"]).meta["fxrebasin"]
    assert report.distance_before > 1
    assert report.distance_after == 0
    merged = fxrebasin.merge_many(
        [a, b], "merge_many", example_inputs=VECTORS, state_buffers=["*_sign"]
    )
    assert all(torch.equal(t, a.state_dict()[name]) for name, t in merged.state_dict().items())


def test_the_command_line_takes_patterns(tmp_path: Path) -> None:
    model = "tests.test_choices:signed"
    found = fxrebasin.analyze(signed(), VECTORS, state_buffers=["*_sign"])
    save_state_dict(tmp_path / "a.pt", signed().state_dict())
    save_state_dict(tmp_path / "b.pt", found.random(1).permute_state_dict(signed().state_dict()))
    common = ["--input-shape", "4,3", "--state-buffers", "first*", "--state-buffers", "next_sign"]
    inspected = CliRunner().invoke(main, ["inspect", model, "--json", *common])
    assert json.loads(inspected.output)["log10_order"] == pytest.approx(f(6), abs=1e-3)
    out = tmp_path / "out.safetensors"
    files = [f"--model-b={tmp_path / 'b.pt'}", f"--ref={tmp_path / 'a.pt'}", f"--out={out}"]
    done = CliRunner().invoke(main, ["transform", model, *files, *common])
    assert done.exit_code == 0, done.output
    written = load_state_dict(out)
    assert all(torch.equal(t, written[name]) for name, t in signed().state_dict().items())
    refused = CliRunner().invoke(main, ["inspect", model, "--state-buffers", "signs"])
    assert refused.exit_code == 2
    assert "no buffer 'signs'" in refused.output
