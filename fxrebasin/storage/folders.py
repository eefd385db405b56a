"""Folders of transformers' and diffusers' models, read and written by these libraries.

What is written is the folder that was read with other weights: the names, dtypes, container and
shards that were there, and every other file as it was, except those with weights of another kind,
which would be weights of another model now.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.models.folders import (
    CONFIG,
    Library,
    ModelFolder,
    folder_of,
    is_hugging_face,
    open_folder,
)
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.cards import CARD, card_with
from fxrebasin.storage.finding import find
from fxrebasin.storage.folder_files import (
    drafted_folder,
    files_left_out,
    other_files,
    refuse_folder,
    weights_of,
)
from fxrebasin.storage.folder_weights import FolderWeights
from fxrebasin.storage.libraries import binding, of_a_library
from fxrebasin.storage.library_weights import (
    LibraryWeights,
    as_stored,
    check_written,
    in_files,
    plain_content,
)
from fxrebasin.storage.reading import Checkpoint, Kind, Reading
from fxrebasin.wording import listed

_SHOWN = 5  # names in a note


@dataclass(frozen=True)
class FolderSource:
    """What is needed to write a folder again.

    Args:
        folder: that was read.
        weights: that were in it.
        reading: how it was read.
    """

    folder: ModelFolder
    weights: LibraryWeights
    reading: Reading


def is_model_folder(path: Path, model: nn.Module) -> bool:
    """Whether a path is to be read by the library of the model.

    Args:
        path: of a folder that transformers or diffusers wrote, of its configuration or its index.
        model: that it is read for. Folders of models that are of no library are files of weights
            among others.
    """
    if not is_hugging_face(path):
        return False
    folder = folder_of(path)
    return of_a_library(model) or (folder is not None and not (folder / CONFIG).is_file())


def read_folder(path: Path, model: nn.Module, reading: Reading) -> Checkpoint:
    """The weights in a folder, through the loader of its library.

    Args:
        path: of the folder, its configuration or its index.
        model: gives the class that the folder is loaded as.
        reading: `key` chooses a variant of the files, such as "fp16".

    Raises:
        CheckpointError: the folder cannot be read, or is of a model of another kind.
        ArchitectureMismatchError: names or shapes differ from the model's.
    """
    if reading.prefix is not None:
        raise InputError(f"{path} is the folder of a model, whose names are known: without prefix")
    folder = open_folder(path)
    library = binding(folder.library)
    file = weights_of(folder, library, reading.key, path)
    content = plain_content(file)
    loaded = library.load(folder, content.tree, model, file, trusted=reading.trust_remote_code)
    dtypes = {name: tensor.dtype for name, tensor in content.tree.items()}
    weights = LibraryWeights(folder.library, file, content.container, dtypes, loaded)
    found = find(as_stored(weights), model, Reading(ignore=reading.ignore), str(path))
    left_out = files_left_out(folder.path, weights.files())
    notes = (*found.notes, *notes_on(loaded, str(folder.path)))
    source = FolderSource(folder, weights, reading)
    return Checkpoint(path, Kind.MODEL_FOLDER, found.state, loaded.unused, notes, left_out, source)


def notes_on(loaded: FolderWeights, place: str) -> tuple[str, ...]:
    """What people want to know of how a library loaded weights.

    Args:
        loaded: by the library.
        place: where they were.
    """
    notes = []
    if loaded.unused:
        notes.append(
            f"{place} holds tensors that a {type(loaded.module).__name__} does not have, and that "
            f"are not in what is written: {listed(loaded.unused, _SHOWN)}."
        )
    if loaded.differing:
        notes.append(
            f"The configuration of {place} is not that of the model: "
            f"{listed(loaded.differing, _SHOWN)}."
        )
    return tuple(notes)


def write_folder(
    out: Path,
    like: Checkpoint,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    card: str | None = None,
) -> tuple[Path, ...]:
    """A folder that the library's `from_pretrained` loads.

    Args:
        out: the folder; it appears whole or not at all.
        like: what was read.
        state: weights by name of the model.
        dtype: of all floating tensors; those of `like` when left out.
        overwrite: replace the folder of a model.
        card: text of README.md, above that which was there.

    Returns:
        The folder.

    Raises:
        CheckpointError: it cannot be written.
        InputError: it exists, or is one of those that were read.
    """
    source = like.source
    if not isinstance(source, FolderSource):
        raise CheckpointError(f"{out} cannot be written: {like.path} is not the folder of a model")
    refuse_folder(out, [source.folder.path], overwrite=overwrite)
    weights = source.weights
    try:
        with drafted_folder(out) as draft:
            # Beside the draft, where there is room for the draft itself.
            with in_files(weights, state, dtype, draft.parent) as (tree, container):
                container.write(tree, draft / weights.path.name)
            kept, _ = other_files(source.folder.path, weights.files())
            for inside in kept:
                (draft / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder.path / inside, draft / inside)
            _write_configuration(source, dtype, draft)
            if card is not None:
                _write_card(card, draft / CARD)
            again = read_folder(draft, weights.loaded.module, source.reading)
            check_written(state, again.state, out)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{out} cannot be written: {first_lines(error)}") from error
    return (out,)


def _write_configuration(source: FolderSource, dtype: torch.dtype | None, draft: Path) -> None:
    """The configuration as it was, but for what is no longer true."""
    loaded = source.weights.loaded
    module: Any = loaded.module
    config = dict(source.folder.config)
    kind = type(module).__name__
    if loaded.unused and config.get("architectures") not in (None, [kind]):
        if module.config.model_type != config["model_type"]:  # a part of a model of several
            config = json.loads(module.config.to_json_string())
        config["architectures"] = [kind]
    if dtype is not None and source.folder.library is Library.TRANSFORMERS:
        entry = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[entry] = str(dtype).removeprefix("torch.")
    if config != source.folder.config:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (draft / CONFIG).write_text(text, encoding="utf-8")


def _write_card(card: str, place: Path) -> None:
    previous = place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
    place.write_text(card_with(card, previous), encoding="utf-8")
