"""`make` on an interpreter that will not do says so, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What set-up reads, without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def failing_make(checkout: Path, target: str, python: str) -> str:
    """What `make` says when it cannot reach a target."""
    command = ["make", target, f"PYTHON={python}"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode != 0
    assert not (checkout / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize("target", ["setup", "demo", "test"])
def test_a_python_that_is_too_old_is_named(checkout: Path, target: str) -> None:
    old = checkout / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    message = failing_make(checkout, target, str(old))
    assert f"fxrebasin needs Python 3.10 or newer; {old} is Python 3.9.18." in message
    assert "make setup PYTHON=" in message


def test_a_python_that_is_not_there_is_named(checkout: Path) -> None:
    assert "There is no 'no-such-python'" in failing_make(checkout, "demo", "no-such-python")
