"""Folders of transformers' and diffusers' models, read and written by these libraries.

What is written is the folder that was read with other weights: the names, dtypes, container and
shards that were there, and every other file as it was, except those with weights of another kind,
which would be weights of another model now.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.gather import storage_identity
from fxrebasin.models.folders import (
    CONFIG,
    Library,
    ModelFolder,
    folder_of,
    is_hugging_face,
    open_folder,
)
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.containers import Container, Content, read_file
from fxrebasin.storage.finding import find
from fxrebasin.storage.folder_files import (
    CARD,
    NUMBER_OF_SHARD,
    card_with,
    drafted_folder,
    other_files,
    refuse_folder,
    weights_of,
)
from fxrebasin.storage.folder_weights import FolderWeights, Tree
from fxrebasin.storage.libraries import binding, of_a_library
from fxrebasin.storage.reading import Checkpoint, Kind, Reading
from fxrebasin.storage.shards import Shards, read_shards
from fxrebasin.wording import listed

_SHOWN = 5  # names in a note


@dataclass(frozen=True)
class FolderSource:
    """What is needed to write a folder again.

    Args:
        folder: that was read.
        weights: the file in it that was read.
        container: of that file, or of the shards.
        dtypes: of the tensors by their names there.
        loaded: the weights in a module of the library.
    """

    folder: ModelFolder
    weights: Path
    container: Container
    dtypes: Mapping[str, torch.dtype]
    loaded: FolderWeights


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
    weights = weights_of(folder, library, reading.key, path)
    content = _content(weights)
    loaded = library.load(folder, content.tree, model, weights, trusted=reading.trust_remote_code)
    dtypes = {name: tensor.dtype for name, tensor in content.tree.items()}
    source = FolderSource(folder, weights, content.container, dtypes, loaded)
    found = find(_as_stored(loaded, dtypes), model, Reading(ignore=reading.ignore), str(path))
    _, left = other_files(folder.path, _names(source))
    left_out = tuple(
        f"{inside} is not written again: it holds weights that do not belong to the new ones."
        for inside in left
    )
    notes = (*found.notes, *_notes(source, model))
    return Checkpoint(path, Kind.MODEL_FOLDER, found.state, loaded.unused, notes, left_out, source)


def _content(weights: Path) -> Content:
    content = read_shards(weights) if ".index." in weights.name else read_file(weights)
    tree = content.tree
    wrong = [
        str(name)
        for name, tensor in (tree.items() if isinstance(tree, Mapping) else ())
        if not isinstance(tensor, torch.Tensor) or _is_float8(tensor)
    ]
    if not isinstance(tree, Mapping) or wrong:
        raise CheckpointError(
            f"{weights} holds something else than the weights of a model: "
            f"{listed(wrong, _SHOWN) or type(tree).__name__}; quantised ones cannot be permuted"
        )
    return content


def _is_float8(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def _as_stored(loaded: FolderWeights, dtypes: Mapping[str, torch.dtype]) -> Tree:
    """The tensors that were in the folder, in their dtypes there; tied ones share one tensor."""
    made: dict[object, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in loaded.module.state_dict().items():
        if name in loaded.missing or not isinstance(tensor, torch.Tensor):
            continue
        identity = storage_identity(tensor)
        if identity not in made:
            made[identity] = tensor.to(_dtype_of(name, tensor, loaded, dtypes))
        state[name] = made[identity]
    return state


def _dtype_of(
    name: str, tensor: torch.Tensor, loaded: FolderWeights, dtypes: Mapping[str, torch.dtype]
) -> torch.dtype:
    """Of a tensor in the files; where names are others there and dtypes vary, the widest."""
    if not tensor.is_floating_point():
        return tensor.dtype
    all_of_them = {dtype for dtype in dtypes.values() if dtype.is_floating_point}
    if len(all_of_them) == 1:
        return next(iter(all_of_them))
    base = f"{getattr(loaded.module, 'base_model_prefix', '')}."
    for stored in (name, base + name, name.removeprefix(base)):
        if stored in dtypes:
            return dtypes[stored]
    return tensor.dtype


def _notes(source: FolderSource, model: nn.Module) -> tuple[str, ...]:
    """What people want to know of how a folder was read."""
    loaded, place = source.loaded, source.folder.path
    notes = []
    if loaded.unused:
        notes.append(
            f"{place} holds tensors that a {type(model).__name__} does not have, and that are not "
            f"in what is written: {listed(loaded.unused, _SHOWN)}."
        )
    if loaded.differing:
        notes.append(
            f"The configuration of {place} is not that of the model: "
            f"{listed(loaded.differing, _SHOWN)}."
        )
    return tuple(notes)


def _names(source: FolderSource) -> list[str]:
    """Of the files that the weights were read from."""
    shards = source.container.containers if isinstance(source.container, Shards) else ()
    return [source.weights.name, *shards]


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
    try:
        with drafted_folder(out) as draft:
            _write_weights(source, state, dtype, draft)
            kept, _ = other_files(source.folder.path, _names(source))
            for inside in kept:
                (draft / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder.path / inside, draft / inside)
            _write_configuration(source, dtype, draft)
            if card is not None:
                _write_card(card, draft / CARD)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {first_lines(error)}") from error
    return (out,)


def _write_weights(
    source: FolderSource, state: Tree, dtype: torch.dtype | None, draft: Path
) -> None:
    library = binding(source.folder.library)
    # Beside the draft, where there is room for the draft itself.
    with tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
        saved = library.save(source.loaded, _tied(state, source.loaded), Path(scratch))
        floating = [d for d in source.dtypes.values() if d.is_floating_point]
        usual = max(set(floating), key=floating.count) if floating else torch.float32
        for name, tensor in saved.items():
            if tensor.is_floating_point():
                saved[name] = tensor.to(dtype or source.dtypes.get(name, usual))
        if saved.keys() <= source.dtypes.keys():
            tree, container = _in_order(source, saved), source.container
        else:  # names of an older release, which the library does not write
            tree, container = saved, _shared_out(source, saved)
        container.write(tree, draft / source.weights.name)


def _tied(state: Tree, loaded: FolderWeights) -> dict[str, torch.Tensor]:
    """The state with one tensor where the module has one under several names."""
    names: dict[object, str] = {}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in loaded.module.state_dict(keep_vars=True).items():
        if name not in state:
            continue
        first = names.setdefault(id(tensor), name)
        if not state[first].equal(state[name]):
            raise CheckpointError(
                f"{first} and {name} are one tensor in a {type(loaded.module).__name__}; "
                "expected the same values"
            )
        result[name] = state[first].detach().to("cpu")
        if first != name:
            result[name] = result[first]
    return result


def _in_order(source: FolderSource, saved: Tree) -> dict[str, torch.Tensor]:
    """In the order of the file; what it held under several tied names is there again."""
    twins = _twins(source.loaded)
    tree: dict[str, torch.Tensor] = {}
    for name in source.dtypes:
        written = next((other for other in (name, *twins.get(name, ())) if other in saved), None)
        if written is not None:
            tree[name] = saved[written]
    return tree


def _twins(loaded: FolderWeights) -> dict[str, list[str]]:
    """Other names, in files, of tensors that have several in the module."""
    base = f"{getattr(loaded.module, 'base_model_prefix', '')}."
    groups: dict[int, list[str]] = {}
    for name, tensor in loaded.module.state_dict(keep_vars=True).items():
        stored = dict.fromkeys((name, base + name, name.removeprefix(base)))
        groups.setdefault(id(tensor), []).extend(stored)
    return {name: group for group in groups.values() if len(group) > 3 for name in group}


def _shared_out(source: FolderSource, saved: Tree) -> Container:
    """A container for tensors of other names, with shards of at most the size that they had."""
    container = source.container
    if not isinstance(container, Shards):
        return container
    limit = max((source.folder.path / shard).stat().st_size for shard in container.containers)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in saved.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    stem, suffix = _stem(next(iter(container.containers)))
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}{suffix}" for i in range(len(shards))]
    kind = next(iter(container.containers.values()))
    files = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    return Shards(container.name, container.document, files, dict.fromkeys(names, kind))


def _stem(shard: str) -> tuple[str, str]:
    """Of the name of a shard, what is before its number and after it."""
    before, after = NUMBER_OF_SHARD.split(shard, 1)
    return before, after


def _write_configuration(source: FolderSource, dtype: torch.dtype | None, draft: Path) -> None:
    """The configuration as it was, but for what is no longer true."""
    module: Any = source.loaded.module
    config = dict(source.folder.config)
    kind = type(module).__name__
    if source.loaded.unused and config.get("architectures") not in (None, [kind]):
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
