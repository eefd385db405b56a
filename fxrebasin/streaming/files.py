"""Files of weights, whose tensors are read when they are asked for, and counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.gather import storage_identity
from fxrebasin.storage.containers import INDEX, SAFETENSORS, check_is_file
from fxrebasin.storage.distributed import read_distributed, tree_of_distributed
from fxrebasin.storage.finding import check_values
from fxrebasin.storage.pickles import is_zip, load_pickle
from fxrebasin.storage.tree import KeyPath, at, is_tensor
from fxrebasin.streaming.safetensors_file import Layout, layout_of, read_rows

_HEAD = 2**16


class WholeOnlyError(CheckpointError):
    """A checkpoint can only be read or written as a whole."""


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


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file.

    Args:
        path: where it is.
        layout: its header.
    """

    path: Path
    layout: Layout

    @property
    def tree(self) -> Any:
        """Tensors by name."""
        return {name: stored.on_meta() for name, stored in self.layout.tensors.items()}

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        (name,) = place
        with self.path.open("rb", buffering=0) as file:
            return read_rows(file, self.layout.tensors[name], self.layout.starts[name], rows)


@dataclass(frozen=True)
class PickledFile:
    """A file of `torch.save`, which is mapped for as long as something is read.

    Args:
        path: where it is.
        tree: what is in it, with tensors without data.
    """

    path: Path
    tree: Any

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        found: torch.Tensor = at(load_pickle(self.path), place)
        check_values({".".join(map(str, place)): found}, str(self.path))
        part = found.detach() if rows is None else found.detach()[rows]
        return part.contiguous().clone()


@dataclass(frozen=True)
class DistributedFolder:
    """A folder of torch.distributed.checkpoint.

    Args:
        path: where it is.
        tree: what is in it, with tensors without data.
    """

    path: Path
    tree: Any

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        found: torch.Tensor = at(read_distributed(self.path, place).tree, place)
        return found if rows is None else found[rows].clone()


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

    def places_in(self, file: File) -> dict[str, KeyPath]:
        """The tensors that are in a file of tensors by name: their names there, and their places.

        Args:
            file: one of those of the checkpoint.
        """
        return {str(inside[0]): p for p, (own, inside) in self._where.items() if own is file}

    def fingerprint(self) -> str:
        """What tells the files from others, and from themselves before a change: their names,
        sizes and times, and how they begin."""
        found = hashlib.sha256()
        for path in sorted({path for file in self.files.values() for path in _all(file.path)}):
            status = path.stat()
            found.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            with path.open("rb") as file:
                found.update(file.read(_HEAD))
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
        return DistributedFolder(path, tree_of_distributed(path))
    check_is_file(path)
    if path.suffix in SAFETENSORS:
        return SafetensorsFile(path, layout_of(path))
    if not is_zip(path):
        raise WholeOnlyError(
            f"{path} cannot be read a tensor at a time: it is of the format of torch before 1.6. "
            "Save it once with the installed torch"
        )
    return PickledFile(path, without_data(load_pickle(path)))


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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


def without_data(tree: Any) -> Any:
    """The same dictionaries, lists and values, with tensors on the meta device; ties stay ties.

    Args:
        tree: what a file holds.
    """
    made: dict[tuple[object, ...], torch.Tensor] = {}

    def copied(value: Any) -> Any:
        if is_tensor(value):
            form = torch.empty(value.shape, dtype=value.dtype, device="meta")
            return made.setdefault(storage_identity(value), form)
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(copied, value))
        return value

    return copied(tree)


def _places(tree: Any, place: KeyPath = ()) -> list[KeyPath]:
    """Where the tensors of a tree are."""
    if is_tensor(tree):
        return [place]
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in _places(value, (*place, key))]
    if type(tree) in (list, tuple):
        return [f for k, value in enumerate(tree) for f in _places(value, (*place, k))]
    return []


def _all(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
