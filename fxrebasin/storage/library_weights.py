"""Weights that a library loaded from its files: as the model has them, and in files again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.gather import storage_identity
from fxrebasin.models.folders import Library
from fxrebasin.rounding import rounded
from fxrebasin.storage.containers import Container, Content, read_file
from fxrebasin.storage.folder_files import NUMBER_OF_SHARD
from fxrebasin.storage.folder_weights import FolderWeights, Tree
from fxrebasin.storage.libraries import binding
from fxrebasin.storage.shards import Shards, read_shards
from fxrebasin.wording import listed

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class LibraryWeights:
    """What was read through a library, and how it lay in files.

    Args:
        library: that loaded it.
        path: of the file, or of the index of those in shards.
        container: of the file, or of the shards.
        dtypes: of the tensors by their names in files.
        loaded: the weights in a module of the library.
    """

    library: Library
    path: Path
    container: Container
    dtypes: Mapping[str, torch.dtype]
    loaded: FolderWeights

    def files(self) -> list[str]:
        """Names of the files that the weights were read from."""
        shards = self.container.containers if isinstance(self.container, Shards) else ()
        return [self.path.name, *shards]


def plain_content(path: Path) -> Content:
    """The tensors in a file, or those of an index, and nothing else.

    Args:
        path: of one of these.

    Raises:
        CheckpointError: there is something else, or quantised tensors.
    """
    content = read_shards(path) if ".index." in path.name else read_file(path)
    tree = content.tree
    wrong = [
        str(name)
        for name, tensor in (tree.items() if isinstance(tree, Mapping) else ())
        if not isinstance(tensor, torch.Tensor) or _is_float8(tensor)
    ]
    if not isinstance(tree, Mapping) or wrong:
        raise CheckpointError(
            f"{path} holds something else than the weights of a model: "
            f"{listed(wrong, _SHOWN) or type(tree).__name__}; quantised ones cannot be permuted"
        )
    return content


def _is_float8(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize == 1


def as_stored(weights: LibraryWeights) -> Tree:
    """The tensors that were in the files, by name of the model and in their dtypes there.

    Tied ones share one tensor.

    Args:
        weights: what was read.
    """
    made: dict[object, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights.loaded.module.state_dict().items():
        if name in weights.loaded.missing or not isinstance(tensor, torch.Tensor):
            continue
        identity = storage_identity(tensor)
        if identity not in made:
            made[identity] = tensor.to(_dtype_of(name, tensor, weights))
        state[name] = made[identity]
    return state


def _dtype_of(name: str, tensor: torch.Tensor, weights: LibraryWeights) -> torch.dtype:
    """Of a tensor in the files; where names are others there and dtypes vary, the widest."""
    if not tensor.is_floating_point():
        return tensor.dtype
    all_of_them = {dtype for dtype in weights.dtypes.values() if dtype.is_floating_point}
    if len(all_of_them) == 1:
        return next(iter(all_of_them))
    found = (
        weights.dtypes[other] for other in _spellings(name, weights) if other in weights.dtypes
    )
    return next(found, tensor.dtype)


def _spellings(name: str, weights: LibraryWeights) -> tuple[str, ...]:
    """A name with and without what stands before those of a base model."""
    base = f"{getattr(weights.loaded.module, 'base_model_prefix', '')}."
    return name, base + name, name.removeprefix(base)


@contextmanager
def in_files(
    weights: LibraryWeights, state: Tree, dtype: torch.dtype | None, room: Path
) -> Iterator[tuple[dict[str, torch.Tensor], Container]]:
    """Other weights by the names that they have in files, and the container for them.

    The tensors may be backed by files that are gone afterwards.

    Args:
        weights: what was read.
        state: the weights by name of the model.
        dtype: of all floating tensors; those in the files when left out.
        room: a folder on the disk that is written to.
    """
    with tempfile.TemporaryDirectory(dir=room) as scratch:
        library = binding(weights.library)
        saved = library.save(weights.loaded, _tied(state, weights.loaded), Path(scratch))
        floating = [d for d in weights.dtypes.values() if d.is_floating_point]
        usual = max(set(floating), key=floating.count) if floating else torch.float32
        for name, tensor in saved.items():
            if tensor.is_floating_point():
                saved[name] = rounded(name, tensor, dtype or weights.dtypes.get(name, usual))
        if saved.keys() <= weights.dtypes.keys():
            yield _in_order(weights, saved), weights.container
        else:  # names of an older release, which the library does not write
            yield saved, _shared_out(weights, saved)


def check_written(state: Tree, again: Tree, out: Path) -> None:
    """Refuse what would load as other weights than were to be written.

    A library may compute what it does not store; then nothing else can be in its place.

    Args:
        state: the weights by name of the model.
        again: what the library makes of the files.
        out: what is written, for the message.

    Raises:
        CheckpointError: they differ.
    """
    wrong = [
        name
        for name, tensor in state.items()
        if name not in again or not again[name].equal(tensor.detach().to("cpu", again[name].dtype))
    ]
    if wrong:
        raise CheckpointError(
            f"{out} is not written: the library would load other weights from it than those of "
            f"{listed(wrong, _SHOWN)}, which it computes and does not store"
        )


def _tied(state: Tree, loaded: FolderWeights) -> dict[str, torch.Tensor]:
    """The state with one tensor where the module has one under several names."""
    result: dict[str, torch.Tensor] = {}
    for group in _tied_names(loaded):
        names = [name for name in group if name in state]
        for name in names:
            first = names[0]
            result.setdefault(first, state[first].detach().to("cpu"))
            if not state[first].equal(state[name]):
                raise CheckpointError(
                    f"{first} and {name} are one tensor in a {type(loaded.module).__name__}; "
                    "expected the same values"
                )
            result[name] = result[first]
    return {name: result[name] for name in state if name in result}


def _tied_names(loaded: FolderWeights) -> list[list[str]]:
    """The names of the tensors of the module, all those of one tensor together."""
    names: dict[int, list[str]] = {}
    for name, tensor in loaded.module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _in_order(weights: LibraryWeights, saved: Tree) -> dict[str, torch.Tensor]:
    """In the order of the file; what it held under several tied names is there again."""
    twins: dict[str, list[str]] = {}
    for names in _tied_names(weights.loaded):
        spelled = [spelling for name in names for spelling in _spellings(name, weights)]
        twins |= dict.fromkeys(spelled, spelled) if len(names) > 1 else {}
    tree: dict[str, torch.Tensor] = {}
    for name in weights.dtypes:
        written = next((other for other in (name, *twins.get(name, ())) if other in saved), None)
        if written is not None:
            tree[name] = saved[written]
    return tree


def _shared_out(weights: LibraryWeights, saved: Tree) -> Container:
    """A container for tensors of other names, with shards of at most the size that they had."""
    container = weights.container
    if not isinstance(container, Shards):
        return container
    limit = max((weights.path.parent / name).stat().st_size for name in container.containers)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in saved.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    example, kind = next(iter(container.containers.items()))
    before, after = NUMBER_OF_SHARD.split(example, maxsplit=1)
    names = [f"{before}-{i + 1:05d}-of-{len(shards):05d}{after}" for i in range(len(shards))]
    files = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    return Shards(container.name, container.document, files, dict.fromkeys(names, kind))
