"""The guides and the first pages do what they show, block by block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from fxrebasin.cli import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"```(python|sh)\n(.*?)```", flags=re.DOTALL)
PAGES = ["first-model.md", *(f"guides/{page.name}" for page in (DOCS / "guides").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page."""
    found = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_blocks_of_a_guide_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def test_the_start_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_a, model_b = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)) for _ in range(2)
    )
    names: dict[str, object] = {"model_a": model_a, "model_b": model_b, "images": torch.randn(4, 6)}
    for block in blocks("index.md", "python"):
        exec(compile(block, "index.md", "exec"), names)
    assert (tmp_path / "model_b.onnx").exists()


def test_the_commands_for_a_first_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    definition = re.search(
        r"^def build\(\):\n.*?\n\n", blocks("first-model.md", "python")[0], re.M | re.S
    )
    assert definition
    Path("model.py").write_text(f"from torch import nn\n\n\n{definition.group()}", encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(Path("model.py").read_text(encoding="utf-8"), "model.py", "exec"), names)
    for name in "ab":
        torch.save(names["build"]().state_dict(), f"{name}.pt")  # type: ignore[operator]
    (commands,) = blocks("first-model.md", "sh")
    for line in commands.splitlines():
        assert line.startswith("fxrebasin ")
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(line)[1:])
        assert ended.value.code == 0, capsys.readouterr().err
    assert {"aligned.pt", "merged.pt"} <= {path.name for path in tmp_path.iterdir()}


def test_every_guide_is_on_the_site() -> None:
    site = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in site} == set()
