"""Where new tensors go: files like those that were read, or one file, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from fxrebasin.errors import CheckpointError, EquivalenceError
from fxrebasin.models.folders import CONFIG, Library
from fxrebasin.ranks import ALONE, Ranks
from fxrebasin.storage.cards import CARD, card_with
from fxrebasin.storage.checkpoint import read_checkpoint, write_checkpoint
from fxrebasin.storage.containers import FILES, PICKLES, SAFETENSORS
from fxrebasin.storage.distributed import METADATA
from fxrebasin.storage.files import put
from fxrebasin.storage.folder_files import other_files, refuse_folder
from fxrebasin.storage.reading import Kind, Reading
from fxrebasin.storage.tree import KeyPath, names_optimiser
from fxrebasin.storage.writing import refuse_full_folder
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.dealing import spread
from fxrebasin.streaming.distributed_folder import DistributedFolder
from fxrebasin.streaming.distributed_parts import NewPart, new_parts
from fxrebasin.streaming.distributed_parts import write_index as write_distributed_index
from fxrebasin.streaming.making import (
    New,
    NewFile,
    Recipe,
    new_files,
    write_files,
    write_index,
)
from fxrebasin.streaming.opening import Opened, open_checkpoint
from fxrebasin.streaming.pickled_file import PickledFile
from fxrebasin.streaming.safetensors_file import bytes_of

_BETWEEN = "weights.safetensors"
"""Tensors on the way to a file of another kind."""


@dataclass(frozen=True)
class Outcome:
    """What is written, and where.

    Args:
        out: the place: a file, or a folder.
        like: the checkpoint whose form it has.
        files: by their names in the folder in which they are put together.
        dtype: of all floating tensors; as they were when left out.
        pickled: whether what was written is turned into a file of `torch.save` at the end.
    """

    out: Path
    like: Opened
    files: tuple[New, ...]
    dtype: torch.dtype | None
    pickled: bool

    @property
    def is_folder(self) -> bool:
        """Whether the result is a folder."""
        return self.out.suffix not in FILES

    @property
    def bytes(self) -> int:
        """Of the files."""
        return sum(file.bytes for file in self.files)


def plan_outcome(
    out: Path, like: Opened, dtype: torch.dtype | None, *, others: bool, overwrite: bool
) -> Outcome:
    """Find out what is written, and refuse what cannot be.

    Args:
        out: by its suffix a file, otherwise a folder like the one that was read.
        like: gives names, dtypes, shards, and everything beside the weights.
        dtype: of all floating tensors; as they were when left out.
        others: whether other copies of the weights in the same file are brought along.
        overwrite: replace what exists.

    Raises:
        WholeOnlyError: that can only be written as a whole.
        CheckpointError: it cannot be written like what was read.
        InputError: it exists.
    """
    if out.suffix in SAFETENSORS:
        same = like.kind is Kind.FILE and like.weights.suffix in SAFETENSORS
        files = new_files(like, None if same else out.name, dtype, others=others)
        named = tuple(replace(file, name=out.name) for file in files)
        return Outcome(out, like, named, dtype, pickled=False)
    if out.suffix in PICKLES:
        _refuse_pickle(out, like)
        files = new_files(like, _BETWEEN, dtype, others=False)
        return Outcome(out, like, tuple(files), dtype, pickled=True)
    if like.kind is Kind.FILE and not like.path.is_dir():
        raise CheckpointError(
            f"{like.path} is a file, and {out} would be a folder: give --out one of the suffixes "
            f"{', '.join((*SAFETENSORS, *PICKLES))}"
        )
    if like.folder is not None:
        refuse_folder(out, [like.folder.path], overwrite=overwrite)
    else:
        refuse_full_folder(out, overwrite=overwrite)
    made: list[NewPart] | list[NewFile] = (
        new_parts(like, dtype, others=others)
        if like.kind is Kind.DISTRIBUTED
        else new_files(like, None, dtype, others=others)
    )
    return Outcome(out, like, tuple(made), dtype, pickled=False)


def _refuse_pickle(out: Path, like: Opened) -> None:
    single = like.kind is Kind.FILE and like.folder is None
    if not single or not all(isinstance(f, PickledFile) for f in like.reader.files.values()):
        raise WholeOnlyError(
            f"{out} cannot be written a tensor at a time from {like.path}, which is of another "
            "kind; give --out the name of a .safetensors file, or of a folder like the one read"
        )
    if like.found.others or like.found.nameless:
        raise WholeOnlyError(
            f"{like.path} holds other copies of the weights, which cannot be brought along a "
            "tensor at a time; give --out the name of a .safetensors file"
        )


def write_outcome(
    outcome: Outcome,
    recipe: Recipe,
    folder: Path,
    module: nn.Module,
    reading: Reading,
    card: str | None,
    on_write: Callable[[int], None] = lambda count: None,
    ranks: Ranks = ALONE,
) -> list[str]:
    """Put a result together, and look at all of it again.

    Processes that share the work write different files of it.

    Args:
        outcome: what is written.
        recipe: of the new tensors.
        folder: where it is put together; files of an earlier run stay if they are still right.
        module: has the names and shapes.
        reading: how the checkpoint was read.
        card: text of README.md, in the folder of a model.
        on_write: called with the number of bytes that were written, or read again.
        ranks: the processes that share the work.

    Returns:
        Names of files that an earlier run had finished, and that were not right any more: they
        were made anew. The first process tells those of all.

    Raises:
        CheckpointError: it cannot be written.
        RankLostError: another process has ended.
        EquivalenceError: what was read again is something else than what was to be written.
    """
    like = outcome.like
    try:
        owners = spread([file.bytes for file in outcome.files], ranks.count)
        mine = [f for f, owner in zip(outcome.files, owners, strict=True) if owner == ranks.number]
        damaged = ranks.every(write_files(like, mine, recipe, folder, on_write))
        if ranks.number:
            return []
        if outcome.pickled:
            _write_pickle(outcome, folder, module, reading)
        elif outcome.is_folder:
            if like.index:
                write_index(like, _of_safetensors(outcome), folder, like.weights.name)
            if like.kind is Kind.DISTRIBUTED:
                parts = [file for file in outcome.files if isinstance(file, NewPart)]
                write_distributed_index(parts, folder)
            _write_beside(outcome, folder, card)
        return [name for names in damaged for name in names]
    except OSError as error:
        raise CheckpointError(f"{outcome.out} cannot be written: {error}") from error


def _of_safetensors(outcome: Outcome) -> list[NewFile]:
    return [file for file in outcome.files if isinstance(file, NewFile)]


def _write_beside(outcome: Outcome, folder: Path, card: str | None) -> None:
    """The other files of a folder, as they were but for what is no longer true."""
    like = outcome.like
    own = {like.weights.name, *(file.name for file in outcome.files)}
    for read in like.reader.files.values():
        own |= read.files if isinstance(read, DistributedFolder) else set()
    if like.folder is None:
        if like.path.is_dir():
            for found in sorted(like.path.iterdir()):
                if found.is_file() and found.name not in own and not names_optimiser(found.name):
                    shutil.copyfile(found, folder / found.name)
        return
    kept, _ = other_files(like.folder.path, sorted(own))
    for inside in kept:
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(like.folder.path / inside, folder / inside)
    if outcome.dtype is not None and like.folder.library is Library.TRANSFORMERS:
        config = dict(like.folder.config)
        entry = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[entry] = str(outcome.dtype).removeprefix("torch.")
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
    if card is not None:
        place = like.folder.path / CARD
        old = place.read_text(encoding="utf-8", errors="replace") if place.is_file() else ""
        (folder / CARD).write_text(card_with(card, old), encoding="utf-8")


def _write_pickle(outcome: Outcome, folder: Path, module: nn.Module, reading: Reading) -> None:
    """Turn tensors into a file of `torch.save`; both files are mapped, and take no memory."""
    like, (file,) = outcome.like, _of_safetensors(outcome)
    draft = folder / outcome.out.name
    with safe_open(folder / file.name, framework="pt") as between:
        made = {
            item.name: between.get_tensor(name)
            for name, item in file.items.items()
            if item.name is not None
        }
        state = _tied_again(like, made)
        whole = read_checkpoint(like.path, module, reading)
        state = {**whole.state, **state}
        write_checkpoint(draft, whole, state, dtype=outcome.dtype, overwrite=True)
        again = open_checkpoint(draft, module, reading)
        wrong = [name for name in made if not _same(again.read(name), made[name])]
    if wrong:
        raise EquivalenceError(f"{draft}: {wrong[0]} is not, bit for bit, what was to be written")
    (folder / file.name).unlink()


def _tied_again(like: Opened, made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """New tensors by all names of the model: one for names that are one still."""
    firsts: dict[KeyPath, torch.Tensor] = {}
    found = {}
    for name, place in like.places.items():
        own = made[name] if name in made else firsts[place]
        first = firsts.setdefault(place, own)
        found[name] = first if own is first or _same(own, first) else own
    return found


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    same = one.dtype == two.dtype and one.shape == two.shape
    return same and bytes_of(one.contiguous()) == bytes_of(two.contiguous())


def publish_outcome(outcome: Outcome, folder: Path, *, overwrite: bool) -> Path:
    """Move a result to its place, with a set if there is one (`fxrebasin.storage.files.together`).

    Args:
        outcome: what was written.
        folder: where it was put together.
        overwrite: replace what exists.

    Returns:
        The file, the index, or the folder.

    Raises:
        InputError: something exists that is not to be replaced.
    """
    out, like = outcome.out, outcome.like
    if not outcome.is_folder:
        put(folder / out.name, out, overwrite=overwrite)
        return out
    among = out.is_dir() and any(out.iterdir()) and like.folder is None
    if among:  # the file that says what belongs together comes last
        last = METADATA if like.kind is Kind.DISTRIBUTED else like.weights.name
        for found in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
            put(found, out / found.name, overwrite=overwrite)
    else:
        put(folder, out, overwrite=overwrite)
    return out if like.folder is not None or not like.index else out / like.weights.name
