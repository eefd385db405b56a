"""Names of files of data that belong to another file, by what is in them.

A model whose numbers are in a second file names it. If that name stayed the same, a run that is
killed between two renames would leave a model that computes with the numbers of another one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

_DIGITS = 16
_AT_ONCE = 1 << 22

DATA = re.compile(rf"\.[0-9a-f]{{{_DIGITS}}}\.data$")
"""How names of such files end."""


def named_by_content(file: Path, owner: str) -> Path:
    """Give a file the name of what is in it.

    Args:
        file: of data.
        owner: the name of the file that it belongs to.

    Returns:
        Its new path, in the same folder.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1 2 3")
        >>> named_by_content(Path("numbers"), "net.onnx").name
        'net.onnx.7c8f5059290305ce.data'
    """
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_AT_ONCE):
            digest.update(block)
    return file.rename(file.with_name(f"{owner}.{digest.hexdigest()[:_DIGITS]}.data"))


def outdated(owner: Path, kept: Collection[Path]) -> list[Path]:
    """Files of data beside a file that belong to what it held before.

    Args:
        owner: the file, as it is now.
        kept: paths that belong to it now.

    Example:
        >>> _ = Path("old.onnx.0123456789abcdef.data").write_bytes(b"")
        >>> [path.name for path in outdated(Path("old.onnx"), [])]
        ['old.onnx.0123456789abcdef.data']
    """
    found = []
    for path in owner.parent.iterdir():
        match = DATA.search(path.name)
        if match and path.name[: match.start()] == owner.name and path not in kept:
            found.append(path)
    return sorted(found)
