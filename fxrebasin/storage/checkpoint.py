"""Weights in files and folders: read for a model, and written as they came."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError
from fxrebasin.rounding import rounded
from fxrebasin.storage.containers import FILES, INDEX, Content, container_for, read_file
from fxrebasin.storage.copies import Copy, Wanted, copies, decided
from fxrebasin.storage.distributed import is_distributed, read_distributed
from fxrebasin.storage.finding import Found, find, no_tensors
from fxrebasin.storage.folders import FolderSource, is_model_folder, read_folder, write_folder
from fxrebasin.storage.library_weights import LibraryWeights
from fxrebasin.storage.names import Naming
from fxrebasin.storage.reading import Checkpoint, Kind, Move, Reading
from fxrebasin.storage.renamed import read_renamed, write_file
from fxrebasin.storage.shards import read_shards
from fxrebasin.storage.tree import optimisers, states, structure_fault
from fxrebasin.storage.weights_folder import read_weights_folder
from fxrebasin.storage.writing import Source, place_for, rewritten, write_tree
from fxrebasin.wording import listed


def read_checkpoint(
    path: str | PathLike[str], model: nn.Module, reading: Reading | None = None
) -> Checkpoint:
    """Read weights for a model, on the CPU, without running code from the file.

    Args:
        path: a file of weights, the index of one in shards, or a folder.
        model: has the names and shapes; its values do not count.
        reading: which copy of the weights is taken, and how.

    Raises:
        CheckpointError: what is there cannot be read, or holds several models.
        ArchitectureMismatchError: names or shapes differ from the model's.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> torch.save({"state_dict": net.state_dict(), "epoch": 3}, "net.pt")
        >>> list(read_checkpoint("net.pt", net).state)
        ['weight', 'bias']
    """
    path, reading = Path(path), reading or Reading()
    if is_model_folder(path, model):
        return read_folder(path, model, reading)
    content = read_content(path)
    try:
        found = find(content.tree, model, reading, str(path))
    except ArchitectureMismatchError as error:
        return read_renamed(path, model, reading, error)
    source = Source(content, found)
    kind = content.container.kind
    behind = _stays_behind(path, found)
    return Checkpoint(
        path, kind, found.state, found.extra, found.notes, found.left_out, source, behind
    )


def _stays_behind(path: Path, found: Found) -> tuple[str, ...]:
    lists = (".".join(map(str, place)) for place in found.nameless)
    names = [*(copy.label for copy in found.others), *lists]
    if not names:
        return ()
    what = "Another copy" if len(names) == 1 else "Other copies"
    return (f"{what} of the weights in {path} ({listed(names, 5)}) cannot follow and stay behind.",)


def write_checkpoint(
    out: str | PathLike[str],
    like: Checkpoint,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    card: str | None = None,
    others: Move | None = None,
) -> tuple[Path, ...]:
    """Write other weights in the place of those of a checkpoint, all else as it came.

    Args:
        out: what to write; by its suffix a file, otherwise what was read: an index or a folder.
        like: what was read; it gives container, names, dtypes and everything beside the weights.
        state: the weights, under the names of the model.
        dtype: of all floating tensors; those of `like` when left out.
        overwrite: replace what exists.
        card: text of README.md, in the folder of a model.
        others: what makes other copies (averages) in the file fit the new weights, such as
            `permutation.permute_tensor`; they are left out when this is.

    Returns:
        Paths of what was written.

    Raises:
        CheckpointError: it cannot be written, or not in that kind of file.
        InputError: it exists.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> torch.save({"state_dict": net.state_dict(), "epoch": 3}, "old.pt")
        >>> read = read_checkpoint("old.pt", net)
        >>> write_checkpoint("new.pt", read, {name: 2 * t for name, t in read.state.items()})
        (PosixPath('new.pt'),)
    """
    out = Path(out)
    if like.kind is Kind.MODEL_FOLDER and out.suffix not in FILES:
        return write_folder(out, like, state, dtype=dtype, overwrite=overwrite, card=card)
    if isinstance(like.source, FolderSource | LibraryWeights):
        return (write_file(out, like, state, dtype=dtype, overwrite=overwrite),)
    asked = place_for(out, like)
    if isinstance(like.source, Source):
        made = rewritten(like.source, state, dtype, others, asked)
    else:
        made = _plain(like, state, dtype), asked or container_for(out)
    return (write_tree(out, like, made, overwrite=overwrite),)


def _plain(
    like: Checkpoint, state: Mapping[str, torch.Tensor], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Tensors by name of the model, in the dtypes that were read."""
    stored = {name: tensor.dtype for name, tensor in like.state.items()}
    return {
        name: rounded(name, tensor, dtype if dtype and tensor.is_floating_point() else stored[name])
        for name, tensor in state.items()
    }


def read_content(path: Path) -> Content:
    """All that is in a file or folder.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
    """
    if path.is_dir():
        content = read_distributed(path) if is_distributed(path) else read_weights_folder(path)
    else:
        content = read_shards(path) if path.name.endswith(INDEX) else read_file(path)
    fault = structure_fault(content.tree)
    if fault is not None:
        raise CheckpointError(f"{path} holds {fault}.")
    return content


def load_state_dict(
    path: str | Path, expected: Collection[str] | None = None
) -> dict[str, torch.Tensor]:
    """Read weights from a file, on the CPU, without running code from it.

    The weights may be nested under a usual key ("state_dict", "model", ...) of a training
    checkpoint, whose other contents are ignored. Prefixes that wrappers put before names
    ("module.", "_orig_mod.", "model.") are taken off if more of `expected` fits then.

    Args:
        path: a .safetensors file, the *.index.json of one in shards, or a .pt, .pth, .bin or
            .ckpt file that `torch.load` reads.
        expected: names that the weights should have.

    Returns:
        Tensors by name, in memory.

    Raises:
        CheckpointError: the file is missing, a folder, of another kind, damaged, holds objects
            that only running code could load, or holds no tensors.

    Example:
        >>> torch.save({"state_dict": {"module.w": torch.ones(2)}}, "training.pt")
        >>> load_state_dict("training.pt", expected=["w"])
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    tree = read_content(path).tree
    skipped = tuple(optimisers(tree))
    wanted = Wanted(dict.fromkeys(expected or ()), {}, frozenset())
    found = copies(tree, wanted, skipped)
    if found:
        most = found[0].naming.fits
        best = decided(str(path), [copy for copy in found if copy.naming.fits == most])
        own = {there: name for name, there in best.naming.names.items()}
        return {own.get(name, name): tensor for name, tensor in best.tensors.items()}
    whole = sorted(
        states(tree, skipped), key=lambda item: not Copy(item[0], item[1], Naming({})).usual
    )
    if not whole:
        raise no_tensors(str(path), tree)
    return whole[0][1]


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model, or nothing at all.

    Args:
        model: takes the weights, in its own dtypes.
        path: as for `load_state_dict`.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureMismatchError: names or shapes differ from the model's; all of them are told.

    Example:
        >>> save_state_dict("linear.safetensors", nn.Linear(2, 1).state_dict())
        >>> load_weights(nn.Linear(2, 1), "linear.safetensors")
    """
    model.load_state_dict(read_checkpoint(path, model).state, strict=False)


def save_state_dict(
    path: str | Path, state: Mapping[str, torch.Tensor], *, overwrite: bool = False
) -> None:
    """Write weights to a file, whole or not at all.

    safetensors cannot hold two names for one tensor: there, tied tensors are stored under each
    of their names, which every reader understands. The pickles keep the tie.

    Args:
        path: a .safetensors, .pt, .pth, .bin or .ckpt file; its folder is made if it is missing.
        state: tensors by name.
        overwrite: replace a file that exists.

    Raises:
        CheckpointError: the name is of no known kind, or the file cannot be written.
        InputError: the file exists.

    Example:
        >>> save_state_dict("weights.safetensors", {"w": torch.ones(2)})
        >>> load_state_dict("weights.safetensors")
        {'w': tensor([1., 1.])}
    """
    path = Path(path)
    container = container_for(path)
    tensors = {name: tensor.detach() for name, tensor in state.items()}
    write_tree(
        path, Checkpoint(path, container.kind, tensors), (tensors, container), overwrite=overwrite
    )
