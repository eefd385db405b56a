"""docs/command-line.md: its files and commands run one after the other, and print what it shows.

`python -m tests.test_command_line_page` writes the page anew with what commands print now.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from fxrebasin.cli import main
from fxrebasin.models.torchvision_shim import ensure_torchvision

PAGE = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
FILE = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(
    r"```sh\nfxrebasin (?P<command>[^`]*?)\n```\n\n```text\n(?P<shown>.*?)```", re.DOTALL
)
PARTS = re.compile(f"{FILE.pattern}|{COMMAND.pattern}", re.DOTALL)
SCRIPTS = ("train.py", "folders.py")


def printed(command: str) -> str:
    """What a command prints, with what it says on standard error."""
    words = shlex.split(command.replace("\\\n", " "))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"{command}: {result.output}"
    return "\n".join(line.rstrip() for line in result.output.splitlines()) + "\n"


def lay_file(name: str, content: str) -> None:
    """Write a file that the page shows, and run it if it is a script."""
    Path(name).write_text(content, encoding="utf-8")
    if name in SCRIPTS:
        exec(compile(content, name, "exec"), {"__name__": "page"})


def outline(text: str) -> str:
    """A text without its numbers, of which some differ from machine to machine, and widths."""
    words = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?%?|[━─]+", "#", text)
    return re.sub(r" +", " ", words)


def test_the_page_shows_what_commands_print(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ensure_torchvision()
    shown = 0
    for part in PARTS.finditer(PAGE.read_text(encoding="utf-8")):
        if part["command"] is None:
            lay_file(part[1], part[2])
        else:
            shown += 1
            found = printed(part["command"])
            assert outline(found) == outline(part["shown"]), part["command"]
    assert shown >= 15
    for name in ("rings", "train", "folders"):
        sys.modules.pop(name, None)


def test_the_merged_folder_of_the_page_is_loaded_by_its_library(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    text = PAGE.read_text(encoding="utf-8")
    (content,) = (body for name, body in FILE.findall(text) if name == "folders.py")
    lay_file("folders.py", content)
    printed("merge news reviews --out both")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("both")
    first = transformers.AutoModelForSequenceClassification.from_pretrained("news")
    assert type(model) is type(first)
    assert {t.dtype for t in model.parameters()} == {t.dtype for t in first.parameters()}
    assert not model.classifier.weight.equal(first.classifier.weight)
    assert "merge news reviews --out both" in Path("both/README.md").read_text()


def test_every_command_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    on_page = {match["command"].split()[0] for match in COMMAND.finditer(text)}
    assert on_page == set(main.commands) - {"demo"}


def rewrite() -> None:
    """The page with what commands print now."""
    text = PAGE.read_text(encoding="utf-8")
    ensure_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        made, end = [], 0
        for part in PARTS.finditer(text):
            if part["command"] is None:
                lay_file(part[1], part[2])
                continue
            made += [text[end : part.start("shown")], printed(part["command"])]
            end = part.end("shown")
        os.chdir(PAGE.parent)
        PAGE.write_text("".join([*made, text[end:]]), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
