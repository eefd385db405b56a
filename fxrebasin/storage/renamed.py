"""Files of transformers' weights without their folder: the names in them may not be the module's.

What `save_pretrained` writes is not always what `state_dict` has; the library knows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError
from fxrebasin.models.checks import StateMismatchError
from fxrebasin.models.folders import Library
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.containers import compact
from fxrebasin.storage.files import refuse_existing
from fxrebasin.storage.finding import find
from fxrebasin.storage.folders import FolderSource, notes_on
from fxrebasin.storage.library_weights import (
    LibraryWeights,
    as_stored,
    check_written,
    in_files,
    plain_content,
)
from fxrebasin.storage.reading import Checkpoint, Reading
from fxrebasin.storage.transformers_weights import Transformers
from fxrebasin.storage.writing import place_for, write_tree


def read_renamed(
    path: Path, model: nn.Module, reading: Reading, refusal: ArchitectureMismatchError
) -> Checkpoint:
    """The weights in a file, under the names that transformers makes of those in it.

    Args:
        path: of a file, or of the index of those in shards.
        model: has the names and shapes.
        reading: what may be missing.
        refusal: of the names as they are; raised where the others do not fit better.

    Raises:
        ArchitectureMismatchError: names or shapes differ from the model's either way.
    """
    if path.is_dir() or reading.key is not None or not Transformers().takes(model):
        raise refusal
    try:
        content = plain_content(path)
        loaded = Transformers().load_alone(path, content.tree, model)
    except CheckpointError:
        raise refusal from None
    if loaded.unused and not reading.ignore_extra:
        raise refusal
    dtypes = {name: tensor.dtype for name, tensor in content.tree.items()}
    weights = LibraryWeights(Library.TRANSFORMERS, path, content.container, dtypes, loaded)
    try:
        found = find(as_stored(weights), model, Reading(ignore=reading.ignore), str(path))
    except StateMismatchError as error:
        worse = len(error.differences) >= len(getattr(refusal, "differences", ()))
        raise (refusal if worse else error) from None
    notes = (*found.notes, *notes_on(loaded, str(path)))
    kind = content.container.kind
    return Checkpoint(path, kind, found.state, loaded.unused, notes, (), weights)


def write_file(
    out: Path,
    like: Checkpoint,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """A file of weights, or those of an index, by the names that transformers or diffusers gives.

    Args:
        out: of the kind that its suffix says, or that was read.
        like: what was read through a library.
        state: weights by name of the model.
        dtype: of all floating tensors; those of `like` when left out.
        overwrite: replace what exists.

    Raises:
        CheckpointError: it cannot be written.
        InputError: it exists.
    """
    weights = like.source.weights if isinstance(like.source, FolderSource) else like.source
    if not isinstance(weights, LibraryWeights):
        raise CheckpointError(f"{out} cannot be written: {like.path} was read by its own names")
    refuse_existing([out], overwrite=overwrite)
    asked = place_for(out, like)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with in_files(weights, state, dtype, out.parent) as (tree, container):
            if weights.library is Library.TRANSFORMERS:
                again = Transformers().load_alone(out, tree, weights.loaded.module)
                dtypes = {name: tensor.dtype for name, tensor in tree.items()}
                check_written(state, as_stored(replace(weights, dtypes=dtypes, loaded=again)), out)
            made = (tree, container) if asked is None else (compact(tree), asked)
            return write_tree(out, like, made, overwrite=overwrite)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {first_lines(error)}") from error
