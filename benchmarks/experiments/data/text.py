"""Text as bytes: the Python standard library's own source, or the `*.txt` files of a folder."""

from __future__ import annotations

import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments.data.source import Batch, Data
from fxrebasin.errors import InputError

VALUES = 256
_HELD_OUT = 10  # every tenth file
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


@dataclass(frozen=True)
class Pieces:
    """Pieces of text; the targets are the bytes that follow.

    Args:
        text: `[n, length + 1]` uint8; the last byte of a piece is a target only.
    """

    text: Tensor

    def __len__(self) -> int:
        return len(self.text)

    def batch(self, indices: Tensor) -> Batch:
        """Inputs and targets `[n, length]` int64.

        Args:
            indices: `[n]` int64.
        """
        pieces = self.text[indices].long()
        return pieces[:, :-1], pieces[:, 1:]


def load_text(folder: Path | None, length: int, most: tuple[int, int] | None = None) -> Data:
    """Bytes of text in pieces; every tenth file is held out.

    Args:
        folder: whose `*.txt` files are read; the standard library's `*.py` files when None.
        length: of a piece in bytes.
        most: number of pieces to train on and to hold out, evenly spaced; all when None.

    Raises:
        InputError: there is not enough text.
    """
    if folder is None:
        root = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in root.rglob("*.py") if _LEFT_OUT.isdisjoint(path.parts)]
        name = f"source text of the standard library of Python {platform.python_version()}"
    else:
        root, name = folder, f"text of {folder.name}"
        paths = list(folder.rglob("*.txt"))
    paths = sorted(paths, key=lambda path: path.relative_to(root).as_posix())
    held_out = paths[_HELD_OUT - 1 :: _HELD_OUT]
    train = [path for path in paths if path not in set(held_out)]
    parts = [
        _read(files, length + 1, limit, root)
        for files, limit in zip((train, held_out), most or (None, None), strict=True)
    ]
    return Data(f"{name}, as bytes", parts[0], parts[1], (length,), VALUES, folder is None)


def _read(paths: list[Path], length: int, most: int | None, root: Path) -> Pieces:
    content = b"".join(path.read_bytes() for path in paths)
    count = len(content) // length
    if not count:
        raise InputError(
            f"{root} holds {len(content)} bytes of text in {len(paths)} files; at least {length} "
            "are needed to train on, and as many to hold out, which is every tenth file"
        )
    values = np.frombuffer(content, dtype=np.uint8, count=count * length)
    chosen = np.linspace(0, count - 1, min(most or count, count)).astype(np.int64)
    return Pieces(torch.from_numpy(values.reshape(count, length)[chosen]))
