"""MNIST, from the four IDX files as they are distributed, packed with gzip or not."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments.data.source import InMemory
from fxrebasin.errors import InputError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_BYTES = 0x08  # the IDX format's code for unsigned bytes


def holds_mnist(folder: Path) -> bool:
    """Whether the training images lie in a folder."""
    return _find(folder, NAMES["train"][0]) is not None


def load_mnist(folder: Path) -> tuple[InMemory, InMemory]:
    """Images `[n, 1, 28, 28]` float32 from 0 to 1 and labels: to train on, and held out.

    Args:
        folder: that holds the four files.

    Raises:
        InputError: a file is missing, or is not in the format.
    """
    train, test = (_load(folder, *NAMES[part]) for part in ("train", "test"))
    return train, test


def _load(folder: Path, images: str, labels: str) -> InMemory:
    pixels, targets = (_read(folder, name) for name in (images, labels))
    if pixels.dim() != 3 or targets.dim() != 1 or len(pixels) != len(targets):
        raise InputError(
            f"{folder}: {images} has shape {tuple(pixels.shape)} and {labels} "
            f"{tuple(targets.shape)}; expected n images of two dimensions and n labels"
        )
    return InMemory(pixels.float().div(255).unsqueeze(1), targets.long())


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _read(folder: Path, name: str) -> Tensor:
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder} holds neither {name} nor {name}.gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> Tensor:
    """Two zero bytes, type, number of dimensions, their sizes as big-endian int32, then values."""
    if len(content) < 4 or content[:3] != bytes((0, 0, _BYTES)):
        raise InputError(
            f"{path} is no IDX file of unsigned bytes: it begins with {content[:4].hex()!r}, "
            f"expected '0000{_BYTES:02x}' and the number of dimensions"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{path} ends within its header; fetch the file again")
    shape = np.frombuffer(content[4:start], dtype=">i4").tolist()
    values = np.frombuffer(content[start:], dtype=np.uint8)
    if values.size != math.prod(shape):
        raise InputError(
            f"{path} says that it holds {shape} values, but {values.size} bytes follow; "
            "fetch the file again"
        )
    return torch.from_numpy(values.copy()).reshape(shape)
