"""Checkpoints that are opened and not read: their tensors under the names of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, InputError
from fxrebasin.models.folders import Library, ModelFolder, open_folder
from fxrebasin.models.library_imports import import_library
from fxrebasin.storage.containers import FILES, INDEX
from fxrebasin.storage.copies import wanted_of
from fxrebasin.storage.distributed import is_distributed
from fxrebasin.storage.finding import Found, find
from fxrebasin.storage.folder_files import files_left_out, weights_of
from fxrebasin.storage.folder_weights import differences, kind_of_config
from fxrebasin.storage.folders import is_model_folder
from fxrebasin.storage.libraries import binding, of_a_library
from fxrebasin.storage.reading import Kind, Reading
from fxrebasin.storage.tree import KeyPath
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.reader import Reader, open_reader
from fxrebasin.streaming.stored import Stored
from fxrebasin.wording import listed

_SHOWN = 5


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors are read when they are needed.

    Args:
        path: that was given.
        kind: of what it is.
        reader: of its tensors.
        found: which of them are the model's.
        places: of the model's tensors, by their names there; tied ones have one place, where they
            are read.
        written: where they are themselves, and are written.
        stored: shapes and dtypes of these.
        weights: the file or index that has them.
        index: what an index says; nothing where there is none.
        folder: of the model, if it is one.
        notes: what was chosen and found, in sentences.
        left_out: what is not written again, in sentences.
    """

    path: Path
    kind: Kind
    reader: Reader
    found: Found
    places: Mapping[str, KeyPath]
    written: Mapping[str, KeyPath]
    stored: Mapping[str, Stored]
    weights: Path
    index: Mapping[str, Any]
    folder: ModelFolder | None
    notes: tuple[str, ...]
    left_out: tuple[str, ...]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor of the model, or some of its rows, in memory of its own.

        Args:
            name: in the model.
            rows: a range of positions along the first axis; all when left out.
        """
        return self.reader.read(self.places[name], rows)

    @property
    def bytes(self) -> int:
        """Of all tensors of the model, tied ones once."""
        sizes = {self.places[name]: stored.bytes for name, stored in self.stored.items()}
        return sum(sizes.values())


def open_checkpoint(path: Path, model: nn.Module, reading: Reading) -> Opened:
    """Look at the headers of a checkpoint.

    Args:
        path: a file of weights, the index of one in shards, or a folder.
        model: has the names and shapes; its values do not count.
        reading: which copy of the weights is taken, and how.

    Raises:
        CheckpointError: what is there cannot be read a tensor at a time, or holds several models.
        ArchitectureMismatchError: names or shapes differ from the model's.
    """
    if is_model_folder(path, model):
        return _open_folder(path, model, reading)
    weights = _weights_in(path)
    kind = _kind(weights)
    reader, tree, index = open_reader(path, weights)
    found = _found(tree, model, reading, path)
    return _opened((path, kind, weights, index), reader, found, model, reading)


def _open_folder(path: Path, model: nn.Module, reading: Reading) -> Opened:
    if reading.prefix is not None:
        raise InputError(f"{path} is the folder of a model, whose names are known: without prefix")
    folder = open_folder(path)
    weights = weights_of(folder, binding(folder.library), reading.key, path)
    reader, tree, index = open_reader(path, weights)
    _refuse_conversions(model, folder, list(tree), path)
    plain = Reading(ignore=reading.ignore, ignore_extra=reading.ignore_extra)
    found = _found(tree, model, plain, path)
    config = kind_of_config(model) if hasattr(model, "config") else {}
    others = differences(folder.config, config)
    notes = (
        (f"The configuration of {path} is not that of the model: {listed(others, _SHOWN)}.",)
        if others
        else ()
    )
    made = (path, Kind.MODEL_FOLDER, weights, index)
    return _opened(made, reader, found, model, reading, folder, notes)


def _found(tree: Any, model: nn.Module, reading: Reading, path: Path) -> Found:
    """The model's tensors, under the names that they have there."""
    try:
        return find(tree, model, reading, str(path), values=False)
    except ArchitectureMismatchError as error:
        if not of_a_library(model):
            raise
        raise WholeOnlyError(  # the library may know other names
            f"{path} cannot be read a tensor at a time, since its names are not those of the "
            f"model: {error}"
        ) from error


def _opened(
    what: tuple[Path, Kind, Path, Mapping[str, Any]],
    reader: Reader,
    found: Found,
    model: nn.Module,
    reading: Reading,
    folder: ModelFolder | None = None,
    notes: tuple[str, ...] = (),
) -> Opened:
    path, kind, weights, index = what
    wanted = wanted_of(model, reading.ignore)
    sources = {name: found.taken.source(name, wanted) for name in found.state}
    written = {n: (*found.taken.place, s) for n, s in sources.items() if s is not None}
    firsts: dict[int, KeyPath] = {}
    places = {  # what is one tensor in a pickle is read once
        name: firsts.setdefault(id(found.state[name]), place) for name, place in written.items()
    }
    stored = {n: Stored(tuple(found.state[n].shape), found.state[n].dtype) for n in places}
    small = [n for n, s in stored.items() if s.dtype.is_floating_point and s.dtype.itemsize == 1]
    if small and folder is not None:  # a library scales these by other tensors
        raise CheckpointError(
            f"{path} holds quantised tensors, which cannot be permuted: {listed(small, _SHOWN)}"
        )
    every = (*found.notes, *notes)
    left_out = found.left_out
    if folder is not None:
        shards = [str(place[0]) for place in reader.files if place]
        left_out += files_left_out(folder.path, [weights.name, *shards])
    return Opened(
        path, kind, reader, found, places, written, stored, weights, index, folder, every, left_out
    )


def _weights_in(path: Path) -> Path:
    """The one file or index of weights in a folder; the path itself if it is no such folder."""
    if not path.is_dir() or is_distributed(path):
        return path
    entries = sorted(p for p in path.iterdir() if p.is_file())
    indices = [entry for entry in entries if entry.name.endswith(INDEX)]
    files = [entry for entry in entries if entry.suffix in FILES]
    found = indices or files
    if len(found) != 1:
        raise WholeOnlyError(
            f"{path} holds {len(found)} files of weights; name the one that is meant, since "
            "folders of several cannot be read a tensor at a time"
        )
    return found[0]


def _kind(weights: Path) -> Kind:
    if weights.is_dir():
        return Kind.DISTRIBUTED
    return Kind.INDEX if weights.name.endswith(INDEX) else Kind.FILE


def _refuse_conversions(
    model: nn.Module, folder: ModelFolder, names: Sequence[str], path: Path
) -> None:
    """Refuse files whose tensors the library turns into others when it loads them."""
    if folder.library is not Library.TRANSFORMERS:
        return
    mapping: Any = import_library("transformers.conversion_mapping")
    loading: Any = import_library("transformers.core_model_loading")
    steps = mapping.get_model_conversion_mapping(model, add_legacy=False)
    converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
    renamings = [step for step in steps if not isinstance(step, loading.WeightConverter)]
    own = model.state_dict(keep_vars=True)
    turned = [
        name
        for name in names
        if loading.apply_converters(name, converters)[1] is not None
        or (name in own and loading.apply_renamings(name, renamings) != name)
    ]
    if turned:
        raise WholeOnlyError(
            f"{path} cannot be read a tensor at a time: transformers makes other tensors of "
            f"{listed(turned, _SHOWN)}. Save it once with the installed release, or leave out the "
            "limit of memory"
        )
