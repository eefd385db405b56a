"""CIFAR-10 and CIFAR-100, from the folders of the Python version as they are distributed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.data.source import InMemory
from fxrebasin.errors import InputError

FOLDER_10, FOLDER_100 = "cifar-10-batches-py", "cifar-100-python"
_FILES: dict[str, tuple[tuple[str, ...], str, str]] = {
    FOLDER_10: (tuple(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "labels"),
    FOLDER_100: (("train",), "test", "fine_labels"),
}
CLASSES = {FOLDER_10: 10, FOLDER_100: 100}
_SHAPE = (3, 32, 32)
_SIZE = 3 * 32 * 32

# The files were written by Python 2 and an old numpy, whose modules have moved since.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED |= {
    (module, "_reconstruct"): _RECONSTRUCT
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
}


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays, numbers, text and containers; a pickle can ask for any code to be run."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def holds_cifar(folder: Path, which: str) -> bool:
    """Whether a folder, or the folder of that name in it, holds one of the two data sets.

    Args:
        folder: to look in.
        which: `FOLDER_10` or `FOLDER_100`.
    """
    return (_inner(folder, which) / _FILES[which][0][0]).is_file()


def load_cifar(folder: Path, which: str) -> tuple[InMemory, InMemory]:
    """Images `[n, 3, 32, 32]` float32 from 0 to 1 and labels: to train on, and held out.

    Args:
        folder: that holds the folder of the data set, or is it.
        which: `FOLDER_10` or `FOLDER_100`.

    Raises:
        InputError: a file is missing, or holds something else.
    """
    train, test, labels = _FILES[which]
    inner = _inner(folder, which)
    parts = [_load(inner / name, labels, CLASSES[which]) for name in train]
    joined = InMemory(
        torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
    )
    return joined, _load(inner / test, labels, CLASSES[which])


def _inner(folder: Path, which: str) -> Path:
    return folder if folder.name == which else folder / which


def _load(path: Path, labels: str, classes: int) -> InMemory:
    content = _unpickle(path)
    if not isinstance(content, dict) or not {"data", labels} <= set(content):
        raise InputError(f"{path} is no file of CIFAR: it has no entries 'data' and {labels!r}")
    pixels = np.asarray(content["data"])
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _SIZE:
        raise InputError(
            f"{path}: 'data' is {pixels.dtype} of shape {pixels.shape}; "
            f"expected uint8 of shape (n, {_SIZE})"
        )
    targets = torch.as_tensor(content[labels], dtype=torch.int64)
    if targets.shape != pixels.shape[:1] or not ((targets >= 0) & (targets < classes)).all():
        raise InputError(
            f"{path}: {len(targets)} labels for {len(pixels)} images; expected as many labels as "
            f"images, from 0 to {classes - 1}"
        )
    images = torch.from_numpy(pixels.reshape(-1, *_SHAPE).copy()).float().div(255)
    return InMemory(images, targets)


def _unpickle(path: Path) -> Any:
    try:
        return _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no file of CIFAR: {error}") from error
