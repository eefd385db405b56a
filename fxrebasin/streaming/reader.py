"""Files of weights, whose tensors are read when they are asked for, and counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.containers import INDEX, SAFETENSORS, check_is_file
from fxrebasin.storage.pickles import is_zip
from fxrebasin.storage.tree import KeyPath, is_tensor
from fxrebasin.streaming.archive import WholeOnlyError, tree_of
from fxrebasin.streaming.distributed_folder import DistributedFolder
from fxrebasin.streaming.pickled_file import PickledFile
from fxrebasin.streaming.safetensors_file import SafetensorsFile, layout_of

_ENDS, _SAMPLE, _SAMPLES = 2**16, 2**12, 32
"""Bytes at both ends of a file, and of each of the samples in between."""


class File(Protocol):
    """One file, or folder, with tensors in it."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def tree(self) -> Any:
        """What is in it, with tensors without data."""

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own."""


class Reader:
    """The tensors of a checkpoint by their places in its tree.

    Args:
        path: of the checkpoint.
        files: by where their trees are in the whole.
        where: of each tensor: its file, and its place in the tree of that.

    Attributes:
        bytes_read: so far.
    """

    def __init__(
        self,
        path: Path,
        files: Mapping[KeyPath, File],
        where: Mapping[KeyPath, tuple[File, KeyPath]],
    ) -> None:
        self.path = path
        self.files = files
        self._where = where
        self.bytes_read = 0
        self.on_read: Callable[[int], None] = lambda count: None

    def read(self, place: KeyPath, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own.

        Args:
            place: in the tree.
            rows: a range of positions along the first axis; all when left out.
        """
        file, inside = self._where[place]
        tensor = file.read(inside, rows)
        self.bytes_read += tensor.nbytes
        self.on_read(tensor.nbytes)
        return tensor

    @property
    def places(self) -> tuple[KeyPath, ...]:
        """Of all tensors."""
        return tuple(self._where)

    def places_in(self, file: File) -> dict[str, KeyPath]:
        """The tensors that are in a file of tensors by name: their names there, and their places.

        Args:
            file: one of those of the checkpoint.
        """
        return {str(inside[0]): p for p, (own, inside) in self._where.items() if own is file}

    def fingerprint(self) -> str:
        """What tells the files from others, and from themselves before a change: their names,
        sizes and times, how they begin and end, and samples in between."""
        found = hashlib.sha256()
        for path in sorted({path for file in self.files.values() for path in _all(file.path)}):
            status = path.stat()
            found.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            with path.open("rb") as file:
                for start, count in _looked_at(status.st_size):
                    file.seek(start)
                    found.update(file.read(count))
        return found.hexdigest()


def open_file(path: Path) -> File:
    """A file of weights, or a folder of torch.distributed.checkpoint.

    Args:
        path: of it.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
        WholeOnlyError: it is of the older format of torch.
    """
    if path.is_dir():
        return DistributedFolder(path)
    check_is_file(path)
    if path.suffix in SAFETENSORS:
        return SafetensorsFile(path, layout_of(path))
    if not is_zip(path):
        raise WholeOnlyError(
            f"{path} cannot be read a tensor at a time: it is of the format of torch before 1.6. "
            "Save it once with the installed torch"
        )
    return PickledFile(path, tree_of(path))


def open_reader(path: Path, weights: Path | None = None) -> tuple[Reader, Any, Mapping[str, Any]]:
    """The tensors of a checkpoint, its tree without data, and what its index says, if it has one.

    Args:
        path: of a file, an index, or a folder of torch.distributed.checkpoint.
        weights: the file or index of a folder, where the path names the folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    source = weights or path
    if source.name.endswith(INDEX):
        return _open_index(path, source)
    file = open_file(source)
    where = {place: (file, place) for place in _places(file.tree)}
    return Reader(path, {(): file}, where), file.tree, {}


def _open_index(path: Path, index: Path) -> tuple[Reader, Any, Mapping[str, Any]]:
    check_is_file(index)
    try:
        document = json.loads(index.read_text(encoding="utf-8"))
        names = dict(document["weight_map"])
        shards = sorted(set(names.values()))
        wrong = [shard for shard in shards if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not an index of a checkpoint in shards: expected JSON with a 'weight_map'."
        ) from error
    if wrong:
        raise CheckpointError(f"{index} names the shard {wrong[0]!r}; expected a file beside it.")
    files = {shard: open_file(index.parent / shard) for shard in shards}
    missing = [name for name, shard in names.items() if name not in files[shard].tree]
    if missing:
        raise CheckpointError(
            f"{index} promises {', '.join(missing[:5])}, {len(missing)} in all, which its shards "
            "do not hold. Download the shards again."
        )
    tree = {name: files[shard].tree[name] for name, shard in names.items()}
    where: dict[KeyPath, tuple[File, KeyPath]] = {
        (name,): (files[shard], (name,)) for name, shard in names.items()
    }
    return Reader(path, {(s,): file for s, file in files.items()}, where), tree, document


def _places(tree: Any, place: KeyPath = ()) -> list[KeyPath]:
    """Where the tensors of a tree are."""
    if is_tensor(tree):
        return [place]
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in _places(value, (*place, key))]
    if type(tree) in (list, tuple):
        return [f for k, value in enumerate(tree) for f in _places(value, (*place, k))]
    return []


def _looked_at(size: int) -> list[tuple[int, int]]:
    """Where the parts of a file begin that are looked at, and their bytes."""
    between = [(k * size // (_SAMPLES + 1), _SAMPLE) for k in range(1, _SAMPLES + 1)]
    return [(0, _ENDS), *between, (max(0, size - _ENDS), _ENDS)]


def _all(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
