"""New tensors in the place of those of a checkpoint, written one after the other and read again.

Where the checkpoint is of safetensors files, the new ones have their names, headers and order. Each
appears when it is complete, and when what was read back from it is what should be in it, bit for
bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import torch

from fxrebasin.errors import CheckpointError, EquivalenceError
from fxrebasin.permutation import Permutation
from fxrebasin.rounding import rounded
from fxrebasin.running.freed import give_back_memory
from fxrebasin.storage.copies import belongs_to
from fxrebasin.storage.tree import KeyPath
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.problem import may_be_cut
from fxrebasin.streaming.records import keep_record, record_of
from fxrebasin.streaming.safetensors_file import Layout as FileLayout
from fxrebasin.streaming.safetensors_file import (
    SafetensorsFile,
    bytes_of,
    growing,
    new_layout,
    read_rows,
    write_rows,
)
from fxrebasin.streaming.schedule import BLOCK
from fxrebasin.streaming.stored import Stored
from fxrebasin.streaming.sweeping import moved

Piece: TypeAlias = tuple[int, torch.Tensor, torch.Tensor]
"""The first row of a part of a tensor, what it is told by, and the new part."""


class Recipe(Protocol):
    """What the new tensors are."""

    def pieces(self, place: KeyPath, name: str) -> Iterator[Piece]:
        """The parts of a new tensor, in order: by its place in the checkpoint and its name in the
        model."""

    def is_whole(self, name: str) -> bool:
        """Whether a tensor that was written has to be whole to be undone."""

    def undo(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What was written, turned back into what it is told by."""


class Permuting:
    """The tensors of a checkpoint with their units in another order.

    That they are is shown by putting what was written back into the old order: it is what was read.

    Args:
        opened: the checkpoint.
        permutation: of its units.
    """

    def __init__(self, opened: Opened, permutation: Permutation) -> None:
        self._opened, self._layout = opened, permutation.layout
        self._arrays, self._back = permutation.arrays, permutation.inverse().arrays

    def pieces(self, place: KeyPath, name: str) -> Iterator[Piece]:
        """The parts of a new tensor."""
        stored, groups = self._opened.stored[name], self._layout.get(name, ())
        for rows in ranges(stored, cut=not self.is_whole(name)):
            tensor = self._opened.reader.read(place, rows)
            yield (rows.start if rows else 0), tensor, moved(tensor, groups, self._arrays)

    def is_whole(self, name: str) -> bool:
        """Whether rows move."""
        groups = self._layout.get(name, ())
        return bool(groups) and not may_be_cut(self._opened.stored[name].shape, groups)

    def undo(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """In the old order."""
        return moved(tensor, self._layout.get(name, ()), self._back)


def ranges(stored: Stored, *, cut: bool = True) -> Iterator[slice | None]:
    """Ranges of rows that are worked on at once; None for all of them.

    Args:
        stored: the form of a tensor.
        cut: whether it can be worked on in parts.

    Example:
        >>> list(ranges(Stored((2, 3), torch.float32)))
        [None]
    """
    if not cut or not stored.shape or stored.bytes <= BLOCK:
        yield None
        return
    step = max(1, BLOCK // max(1, stored.bytes_of_row))
    for start in range(0, stored.shape[0], step):
        yield slice(start, min(start + step, stored.shape[0]))


@dataclass(frozen=True)
class Item:
    """A tensor that is written.

    Args:
        place: in the checkpoint that was read.
        name: in the model; None if it is none of the model's, and is copied.
    """

    place: KeyPath
    name: str | None


@dataclass(frozen=True)
class NewFile:
    """A file that is written.

    Args:
        name: of the file.
        layout: its header.
        items: by their names in it.
    """

    name: str
    layout: FileLayout
    items: Mapping[str, Item]

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self.layout.bytes

    def is_complete(self, recipe: Recipe, folder: Path) -> bool:
        """Whether it was written, and still is what should be there; all of it is read again.

        Args:
            recipe: of the new tensors.
            folder: that it is in.
        """
        path, digests = folder / self.name, record_of(folder, self.name)
        if not isinstance(digests, Mapping) or not path.is_file():
            return False
        header = self.layout.header
        try:
            with path.open("rb", buffering=0) as file:
                return (
                    path.stat().st_size == self.bytes
                    and file.read(len(header)) == header
                    and _wrong(file, (self, recipe), digests) is None
                )
        except (OSError, CheckpointError):  # what cannot be read is made anew
            return False

    def write(
        self, opened: Opened, recipe: Recipe, folder: Path, on_write: Callable[[int], None]
    ) -> None:
        """Write it; it appears when it was read again and found right.

        Args:
            opened: what tensors that are copied come from.
            recipe: of the new tensors.
            folder: that it is written to.
            on_write: called with the number of bytes that were written, or read again.

        Raises:
            EquivalenceError: what was read again is something else.
        """
        with growing(folder / self.name, self.layout) as opened_file:
            digests = {
                name: _write(opened, recipe, (opened_file, self, name), on_write)
                for name in self.layout.tensors
            }
            opened_file.flush()
            with Path(opened_file.name).open("rb", buffering=0) as written:
                wrong = _wrong(written, (self, recipe), digests, on_write)
            if wrong is not None:
                raise EquivalenceError(
                    f"{self.name}: {wrong} is not, bit for bit, what was to be written there; the "
                    "disk or the memory of this machine may be at fault"
                )
        keep_record(folder, self.name, digests)


def new_files(
    opened: Opened, single: str | None, dtype: torch.dtype | None, *, others: bool
) -> list[NewFile]:
    """The files of safetensors that take the place of those of a checkpoint.

    Args:
        opened: the checkpoint.
        single: the name of the one file that all tensors go to; None for files as they were.
        dtype: of all floating tensors; as they are when left out.
        others: whether other copies of the weights are brought along; they are left out otherwise.

    Raises:
        WholeOnlyError: the checkpoint is of files of another kind, and no single one is asked for;
            or another copy of the weights cannot be brought along.
    """
    items = items_of(opened, others=others)
    if single is not None:
        taken = {(*opened.found.taken.place, n): n for n in opened.found.taken.tensors}
        mine = {name: items[place] for place, name in taken.items() if place in items}
        found = opened.found.taken.tensors
        tensors = {n: cast(Stored(tuple(found[n].shape), found[n].dtype), dtype) for n in mine}
        return [NewFile(single, new_layout(tensors, _metadata(opened)), mine)]
    made = []
    for place, file in opened.reader.files.items():
        if not isinstance(file, SafetensorsFile):
            raise WholeOnlyError(
                f"{file.path} is not of safetensors: files of that kind cannot be written a tensor "
                "at a time. Give --out the name of a .safetensors file"
            )
        inside = opened.reader.places_in(file)
        kept = {name: items[p] for name, p in inside.items() if p in items}
        layout = file.layout
        if dtype is not None or len(kept) < len(layout.tensors):
            forms = {n: cast(layout.tensors[n], dtype) for n in kept}
            layout = new_layout(forms, layout.metadata)
        made.append(NewFile(str(place[0]) if place else file.path.name, layout, kept))
    return made


def items_of(opened: Opened, *, others: bool) -> dict[KeyPath, Item]:
    """The tensors of a checkpoint that are written, by their places.

    Args:
        opened: the checkpoint.
        others: whether other copies of the weights are brought along; they are left out otherwise.

    Raises:
        WholeOnlyError: another copy of the weights cannot be brought along.
    """
    names = _names(opened, others=others)
    dropped = set() if others else _others(opened)
    return {p: Item(p, names.get(p)) for p in opened.reader.places if p not in dropped}


def _names(opened: Opened, *, others: bool) -> dict[KeyPath, str]:
    """The names in the model of the tensors at places, those of other copies as well."""
    found: dict[KeyPath, str] = {}
    for name, place in opened.written.items():
        found.setdefault(place, name)
    for copy in opened.found.others if others else ():
        for name, there in copy.naming.names.items():
            if name in opened.stored and opened.stored[name].shape == copy.tensors[there].shape:
                found.setdefault((*copy.place, there), name)
            else:
                raise WholeOnlyError(
                    f"{opened.path} holds another copy of the weights ({copy.label}), of other "
                    "shapes, which cannot be brought along; save the weights by themselves"
                )
    return found


def _others(opened: Opened) -> set[KeyPath]:
    return {
        (*copy.place, name)
        for copy in opened.found.others
        for name in copy.tensors
        if belongs_to(copy, copy.place, name)
    }


def _metadata(opened: Opened) -> Mapping[str, str]:
    for file in opened.reader.files.values():
        if isinstance(file, SafetensorsFile):
            return file.layout.metadata
    return {"format": "pt"}


def cast(stored: Stored, dtype: torch.dtype | None) -> Stored:
    """The form of a tensor in another dtype, if it is one of floating-point numbers.

    Args:
        stored: the form.
        dtype: None for the same.
    """
    if dtype is None or not stored.dtype.is_floating_point:
        return stored
    return Stored(stored.shape, dtype)


class New(Protocol):
    """A file that is written."""

    @property
    def name(self) -> str:
        """Of the file."""

    @property
    def bytes(self) -> int:
        """Of what is in it."""

    def is_complete(self, recipe: Recipe, folder: Path) -> bool:
        """Whether it was written, and still is what should be there."""

    def write(
        self, opened: Opened, recipe: Recipe, folder: Path, on_write: Callable[[int], None]
    ) -> None:
        """Write it, and look at it again."""


def write_files(
    opened: Opened,
    files: Sequence[New],
    recipe: Recipe,
    folder: Path,
    on_write: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Write files, each of which counts when it was read again and found right.

    Args:
        opened: what tensors that are copied come from.
        files: that are written; those of an earlier run stay if they are still right, for which
            all of them is read again.
        recipe: of the new tensors.
        folder: that they are written to.
        on_write: called with the number of bytes that were written, or read again.

    Returns:
        Names of files that an earlier run had finished, and that were not right any more: they
        were made anew.

    Raises:
        EquivalenceError: what was read again is something else.
    """
    damaged = []
    for file in files:
        if file.is_complete(recipe, folder):
            on_write(2 * file.bytes)
            continue
        if (folder / file.name).exists() and record_of(folder, file.name) is not None:
            damaged.append(file.name)
        file.write(opened, recipe, folder, on_write)
    return damaged


def pieces_of(opened: Opened, recipe: Recipe, item: Item, stored: Stored) -> Iterator[Piece]:
    """The parts of a new tensor, or of one that is copied.

    Args:
        opened: what tensors that are copied come from.
        recipe: of the new tensors.
        item: the tensor.
        stored: its form, in which copies are cut.
    """
    if item.name is not None:
        yield from recipe.pieces(item.place, item.name)
        return
    for rows in ranges(stored):
        tensor = opened.reader.read(item.place, rows)
        yield (rows.start if rows else 0), tensor, tensor


def _write(
    opened: Opened,
    recipe: Recipe,
    target: tuple[BinaryIO, NewFile, str],
    on_write: Callable[[int], None],
) -> str:
    """Write a tensor; returns a digest of what it is told by."""
    file, new, name = target
    item, stored, start = new.items[name], new.layout.tensors[name], new.layout.starts[name]
    found = hashlib.sha256()
    for row, source, made in pieces_of(opened, recipe, item, stored):
        found.update(bytes_of(source.to(stored.dtype).contiguous()))
        write_rows(file, start + row * stored.bytes_of_row, rounded(name, made, stored.dtype))
        on_write(made.numel() * stored.dtype.itemsize)
    give_back_memory()
    return found.hexdigest()


def _wrong(
    file: FileIO,
    what: tuple[NewFile, Recipe],
    digests: Mapping[str, str],
    on_read: Callable[[int], None] = lambda count: None,
) -> str | None:
    """Read all tensors of a file again; the name of the first that is something else."""
    new, recipe = what
    for name, stored in new.layout.tensors.items():
        item, start = new.items[name], new.layout.starts[name]
        found = hashlib.sha256()
        whole = item.name is not None and recipe.is_whole(item.name)
        for rows in ranges(stored, cut=not whole):
            tensor = read_rows(file, stored, start, rows)
            on_read(tensor.nbytes)
            if item.name is not None:
                tensor = recipe.undo(item.name, tensor)
            found.update(bytes_of(tensor.contiguous()))
        if found.hexdigest() != digests.get(name):
            return name
    return None


def write_index(opened: Opened, files: Sequence[NewFile], folder: Path, name: str) -> None:
    """The index of files that were written.

    Args:
        opened: the checkpoint with an index that they take the place of.
        files: that were written.
        folder: that they are in.
        name: of the index.
    """
    where = {tensor: file.name for file in files for tensor in file.items}
    order = [n for n in opened.index["weight_map"] if n in where]
    index: dict[str, Any] = {**opened.index, "weight_map": {n: where[n] for n in order}}
    metadata = opened.index.get("metadata")
    if isinstance(metadata, Mapping) and "total_size" in metadata:
        size = sum(s.bytes for file in files for s in file.layout.tensors.values())
        index["metadata"] = {**metadata, "total_size": size}
    (folder / name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
