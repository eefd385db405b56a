"""Names, shapes and dtypes of what is in checkpoints, without reading a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import attempt

_SAFETENSORS = ".safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Header:
    """What is known of a checkpoint before it is read.

    Args:
        path: of it.
        files: that hold it.
        dtypes: of its tensors, with the number of bytes of each; empty where only reading tells.
        shapes: of its tensors, by their names there.
    """

    path: Path
    files: tuple[Path, ...]
    dtypes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file.stat().st_size for file in self.files)


def header_of(path: Path) -> Header:
    """Look at the beginning of the files of a checkpoint.

    Args:
        path: of a file, an index or a folder.

    Raises:
        CheckpointError: a file is damaged.
    """
    files = _files(path)
    dtypes: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, (shape, dtype) in _tensors(file).items():
            shapes[name] = shape
            spoken = str(dtype).removeprefix("torch.")
            dtypes[spoken] = dtypes.get(spoken, 0) + math.prod(shape) * dtype.itemsize
    return Header(path, tuple(files), dtypes, shapes)


def _files(path: Path) -> Sequence[Path]:
    folder = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    if folder is None:
        return [path]
    found = sorted(folder.rglob(f"*{_SAFETENSORS}")) or sorted(folder.rglob("*.bin"))
    return found or sorted(file for file in folder.rglob("*") if file.is_file())


def _tensors(file: Path) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
    if file.suffix == _SAFETENSORS:
        return _in_safetensors(file)
    trees: list[Any] = []
    # Whatever is wrong with it, reading it will tell.
    attempt(lambda: trees.append(torch.load(file, map_location="meta", weights_only=True)))
    return dict(item for tree in trees for item in _walk(tree, ""))


def _in_safetensors(file: Path) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: (tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.uint8))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no intact safetensors file: {error}") from error


def _walk(tree: Any, place: str) -> Any:
    """Tensors by their names in the innermost dictionaries that hold them."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, torch.Tensor):
                yield str(key), (tuple(value.shape), value.dtype)
            else:
                yield from _walk(value, f"{place}{key}.")
