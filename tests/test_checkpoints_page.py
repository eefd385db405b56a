"""docs/checkpoints.md runs as it stands, and has every layout that the tests read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fxrebasin.models.checks import Remedy
from fxrebasin.storage.containers import PICKLES
from fxrebasin.storage.pickles import ALLOWED
from tests.support.checkpoint_layouts import LAYOUTS, net, read, save_safetensors
from tests.support.randomise import difference, outputs

PAGE = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LAYOUTS["lightning"].save(net(1), net(7), tmp_path).rename("b.ckpt")
    save_safetensors(net(0), net(7), tmp_path).rename("a.safetensors")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "checkpoints.md", "exec"), {"model": net(3)})
    made = net(3)
    made.load_state_dict(
        {n[6:]: t for n, t in read(Path("out.ckpt"))["state_dict"].items() if n[:6] == "model."}
    )
    assert not torch.equal(made.fc.weight, net(1).fc.weight)
    inputs = (torch.randn(2, 3, 6, 6).double(),)
    found = [outputs(module.double(), inputs, {}) for module in (net(1), made)]
    assert difference(*found) < 1e-10


def test_the_page_names_what_is_read() -> None:
    for word in ("Lightning", "timm", "torchvision", "BasicSR", "ldm", "accelerate"):
        assert f"| {word}" in PAGE
    suffixes = {"." + name.split(".")[-1] for name in PICKLES}
    assert suffixes == {".pt", ".pth", ".ckpt", ".bin", ".tar"}
    assert "`.pt .pth .ckpt .bin .pth.tar`" in PAGE
    types = {name.rsplit(".", 1)[1] for name in ALLOWED}
    assert {"Namespace", "defaultdict", "Decimal", "Fraction", "UUID"} <= types
    assert all(f"`{name}`" in PAGE for name in ("Namespace", "defaultdict", "Decimal", "UUID"))
    assert str(Remedy("ignore", ("fc.*",))).replace("'", '"') in PAGE
    assert str(Remedy("ignore_extra")) in PAGE
