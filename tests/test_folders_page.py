"""The page about folders: its examples run as they stand, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("timm")

import transformers as t

from tests.support.commands import invoke
from tests.support.randomise import randomise
from tests.support.text_models import GROUPED

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("model-a", "model-b")):
        model: Any = randomise(t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), seed)
        model.bfloat16().save_pretrained(name)


def test_the_snippets_run_and_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "folders.md", "exec"), names)
    printed = re.findall(r"print\(.*\)\n +# (.*)", PAGE)
    assert capsys.readouterr().out.splitlines() == printed
    t.AutoModelForCausalLM.from_pretrained("aligned")


def test_the_commands_run() -> None:
    (block,) = blocks("sh")
    commands = [line.split("#")[0].split() for line in block.splitlines()]
    assert len(commands) == 2
    for program, *arguments in commands:
        assert program == "fxrebasin"
        invoke(*arguments)
        t.AutoModelForCausalLM.from_pretrained(arguments[-1])
