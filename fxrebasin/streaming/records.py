"""What is known of finished files, beside the folder that they are in.

A run that goes on after an interrupt reads them again: that a file is there says little after the
machine lost its power, or when the disk is full or bad.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fxrebasin.storage.files import publish

_AT_ONCE = 1 << 24


def keep_record(folder: Path, name: str, known: Any) -> None:
    """Write down what is known of a file that was found right.

    Args:
        folder: that it is in.
        name: of the file.
        known: ready for JSON.
    """
    publish(_place(folder, name), json.dumps(known).encode(), overwrite=True)


def record_of(folder: Path, name: str) -> Any:
    """What is known of a finished file; None if it was not finished.

    Args:
        folder: that it is in.
        name: of the file.
    """
    try:
        return json.loads(_place(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or a damaged one, which is worth as much
        return None


def file_digest(path: Path) -> str:
    """A digest of all bytes of a file.

    Args:
        path: of the file.
    """
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while part := file.read(_AT_ONCE):
            found.update(part)
    return found.hexdigest()


def _place(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.records") / f"{name}.json"
