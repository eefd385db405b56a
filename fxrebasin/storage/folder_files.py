"""The files in the folder of a model: which hold its weights, and which others it has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.models.folders import ModelFolder, is_hugging_face
from fxrebasin.storage.diffusers_weights import variant_of
from fxrebasin.storage.files import replacing_folder
from fxrebasin.storage.libraries import Binding
from fxrebasin.wording import listed

NUMBER_OF_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_NAMED_WEIGHTS = "transformers_weights"  # entry of a configuration: the file to read
# Formats of weights, of transformers and others, and the states of optimisers and schedulers.
_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf"),
    *(".onnx", ".onnx_data", ".tflite", ".mlmodel"),
}
_SETTINGS = {"training_args.bin"}
_HIDDEN = {".git", ".cache"}


def weights_of(folder: ModelFolder, library: Binding, key: str | None, given: Path) -> Path:
    """The file of weights, or the index of those in shards, that a library reads.

    Args:
        folder: of the model.
        library: that reads it.
        key: the variant to take, such as "fp16".
        given: what the user named; an index is taken as it is.

    Raises:
        CheckpointError: there is none, or not of this variant, or there are several.
    """
    if given.is_file() and ".index." in given.name:
        return given
    named = folder.config.get(_NAMED_WEIGHTS)
    if isinstance(named, str):
        if Path(named).name != named or not (folder.path / named).is_file():
            raise CheckpointError(f"{folder.file} names weights in {named!r}, which is not there")
        return folder.path / named
    found: dict[str | None, Path] = {}
    for stem, suffix in ((library.stem, ".safetensors"), (library.pickled, ".bin")):
        for path in sorted(folder.path.glob(f"{stem}*")):
            if path.is_file() and _is_named(path.name, stem, suffix):
                found.setdefault(variant_of(path.name), path)
    if key is None and None in found:
        return found[None]
    if key is None and len(found) == 1:
        return next(iter(found.values()))
    if key in found:
        return found[key]
    variants = [repr(variant) for variant in found if variant is not None]
    if not found:
        inside = listed(sorted(path.name for path in folder.path.iterdir()), 8)
        raise CheckpointError(
            f"{folder.path} has no weights that {folder.library.value} reads "
            f"({library.stem}.safetensors, {library.pickled}.bin, or an index of shards); it holds "
            f"{inside or 'nothing'}"
        )
    raise CheckpointError(
        f"{folder.path} has no weights of the variant key={key!r}; it has {', '.join(variants)}"
        if key is not None
        else f"{folder.path} has weights in several variants; choose one by its key: "
        f"{', '.join(variants)}"
    )


def _is_named(name: str, stem: str, suffix: str) -> bool:
    """Whether a file is `stem.safetensors`, an index of that, or a variant of these."""
    if NUMBER_OF_SHARD.search(name) or not name.startswith(f"{stem}."):
        return False
    return name.endswith(suffix) or (name.endswith(".json") and f"{suffix}.index." in name)


def other_files(folder: Path, weights: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The other files of a folder: those that stay true, and those with weights of their own.

    Args:
        folder: of the model.
        weights: names of the files that its weights were read from.

    Returns:
        Both by their paths inside the folder.
    """
    kept: list[Path] = []
    left: list[Path] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not _HIDDEN & set(inside.parts) and str(inside) not in weights:
            (left if _holds_weights(path) else kept).append(inside)
    return kept, left


def files_left_out(folder: Path, weights: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each file of a folder that is not written again.

    Args:
        folder: of the model.
        weights: names of the files that its weights were read from.
    """
    return tuple(
        f"{inside} is not written again: it holds weights that do not belong to the new ones."
        for inside in other_files(folder, weights)[1]
    )


def _holds_weights(path: Path) -> bool:
    index = path.suffix == ".json" and ".index." in path.name
    return path.name not in _SETTINGS and (path.suffix in _WEIGHTS or index)


def refuse_folder(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Check, before any work is done, that a folder can be written.

    Args:
        out: the folder.
        inputs: files and folders that are read, none of which may be written into.
        overwrite: replace the folder of a model that exists.

    Raises:
        InputError: it is full, or not of a model, or is, holds or lies in what is read.

    Example:
        >>> refuse_folder(Path("no-such-folder"), [Path("model")], overwrite=False)
    """
    refuse_inputs(out, inputs)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite or not out.is_dir():
        raise InputError(f"{out} exists already; choose another place, or ask to overwrite")
    if not is_hugging_face(out):
        raise InputError(f"{out} exists and is not the folder of a model; choose another place")


def refuse_inputs(out: Path, inputs: Sequence[Path]) -> None:
    """Check that nothing is written into, or in place of, what is read.

    Args:
        out: a file or folder.
        inputs: files and folders that are read.

    Raises:
        InputError: it is one of them, holds one, or lies in one.

    Example:
        >>> refuse_inputs(Path("merged"), [Path("a.safetensors"), Path("b.safetensors")])
    """
    place = out.resolve()
    for path in inputs:
        used = path.resolve()
        if place == used or used in place.parents or place in used.parents:
            raise InputError(f"{out} cannot be written: {path} is read; choose another place")


@contextmanager
def drafted_folder(out: Path) -> Iterator[Path]:
    """Where to write a folder that appears at its place only when all of it was written.

    Args:
        out: the place; what is there is replaced.

    Example:
        >>> with drafted_folder(Path("model")) as draft:
        ...     _ = (draft / "config.json").write_text("{}")
        >>> (Path("model") / "config.json").read_text()
        '{}'
    """
    with replacing_folder(out) as draft:
        yield draft
