"""What was tried on some rows is never said to be proved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

import fxrebasin
from fxrebasin.cli import main

ROOT = Path(__file__).parent.parent
PROVED = re.compile(r"\b(proved|proves|proven|prove)\b", re.IGNORECASE)
OF_OTHERS = "PyTorch can prove it"  # of the sizes of axes, in the docstring of export_onnx


def texts() -> Iterator[tuple[str, str]]:
    """All that users read beside what a run prints."""
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield page.name, page.read_text(encoding="utf-8")
    assert isinstance(main, click.Group)
    for name, command in main.commands.items():
        context = click.Context(command, info_name=name)
        yield f"fxrebasin {name} --help", command.get_help(context)
    for name in fxrebasin.__all__:
        yield name, getattr(fxrebasin, name).__doc__ or ""


def test_nothing_is_called_proved() -> None:
    found = [
        f"{name}: {line.strip()}"
        for name, text in texts()
        for line in text.splitlines()
        if PROVED.search(line.replace(OF_OTHERS, ""))
    ]
    assert found == []
