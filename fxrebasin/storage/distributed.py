"""Folders of torch.distributed.checkpoint, which FSDP and others write: read in one process.

The library unpickles the index of such a folder, and all that is no tensor, without restriction.
Here both are read with lists of the few types that belong there.
"""

from __future__ import annotations

import importlib
import io
import itertools
import math
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import first_lines
from fxrebasin.storage import pickles
from fxrebasin.storage.containers import Content
from fxrebasin.storage.reading import Kind
from fxrebasin.storage.tree import KeyPath, names_optimiser, optimisers
from fxrebasin.wording import escaped

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

METADATA = ".metadata"

_CHECKPOINT = "torch.distributed.checkpoint"
_METADATA_TYPES = {
    f"{_CHECKPOINT}.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{_CHECKPOINT}.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    "builtins": ("set",),
}
Part: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part of a tensor begins, and its size."""

# In Python, to look at what is done; that in C, which is quicker, has no place for it.
_PythonUnpickler: Any = pickle._Unpickler

_DTYPE = re.compile(r"(bfloat|float|complex|int|uint)[0-9a-z_]+|bool")


@dataclass(frozen=True)
class Distributed:
    """A folder of torch.distributed.checkpoint.

    Args:
        beside: other files in it, as Lightning puts one there.
    """

    beside: tuple[Path, ...] = ()
    kind = Kind.DISTRIBUTED
    flat = False

    def write(self, tree: Any, draft: Path) -> None:
        """Write a folder in one process."""
        from torch.distributed.checkpoint.state_dict_saver import save

        with _alone():
            save(tree, checkpoint_id=draft, no_dist=True)
        for path in self.beside:
            shutil.copyfile(path, draft / path.name)


@contextmanager
def _alone() -> Iterator[None]:
    """Without the warning that there is one process, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is ")
        yield


def is_distributed(path: Path) -> bool:
    """Whether a path is a folder of torch.distributed.checkpoint."""
    return (path / METADATA).is_file()


def read_distributed(path: Path) -> Content:
    """All that is in a folder but the states of optimisers, whole and on the CPU.

    Args:
        path: of the folder.

    Raises:
        CheckpointError: it is damaged, or holds objects other than tensors and plain values.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = read_metadata(path)
    places, empty, skipped = contents_of(path, metadata)
    try:
        wanted: dict[str, Any] = {
            name: None if value is None else torch.empty_like(value, device="cpu")
            for name, value in empty.items()
            if not any(places[name][: len(place)] == place for place in skipped)
        }
        reader = _reader(path, metadata)
        with _alone():
            load(wanted, storage_reader=reader, planner=_planner(path), no_dist=True)
    except (*pickles.DAMAGE, CheckpointException) as error:
        causes = [failure[0] for failure in getattr(error, "failures", {}).values()] or [error]
        own = next((cause for cause in causes if isinstance(cause, CheckpointError)), None)
        raise (own or _damaged(path, causes[0])) from None
    # Enough to be told as an optimiser, so that it is said and left out.
    left: dict[KeyPath, Any] = {place: {"state": {}, "param_groups": []} for place in skipped}
    used = {METADATA, *(Path(i.relative_path).name for i in metadata.storage_data.values())}
    beside = [found for found in sorted(path.iterdir()) if found.is_file()]
    kept = [found for found in beside if found.name not in used and not names_optimiser(found.name)]
    try:
        return Content(nested(places, wanted, left), Distributed(tuple(kept)))
    except pickles.DAMAGE as error:
        raise _damaged(path, error) from None


def contents_of(
    path: Path, metadata: Metadata
) -> tuple[dict[str, KeyPath], dict[str, torch.Tensor | None], set[KeyPath]]:
    """Places by name, tensors on the meta device, and the places of the states of optimisers.

    What is no tensor is None.

    Args:
        path: of the folder.
        metadata: what is in it.

    Raises:
        CheckpointError: the index is damaged.
    """
    try:
        return _contents(metadata)
    except pickles.DAMAGE as error:
        raise _damaged(path, error) from None


def _contents(
    metadata: Metadata,
) -> tuple[dict[str, KeyPath], dict[str, torch.Tensor | None], set[KeyPath]]:
    """Places by name, tensors on the meta device, and the places of the states of optimisers."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    places = {
        name: tuple((metadata.planner_data or {}).get(name, (name,)))
        for name in metadata.state_dict_metadata
    }
    empty = {
        name: torch.empty(found.size, dtype=found.properties.dtype, device="meta")
        if isinstance(found, TensorStorageMetadata)
        else None
        for name, found in metadata.state_dict_metadata.items()
    }
    return places, empty, set(optimisers(nested(places, empty)))


def nested(
    places: Mapping[str, KeyPath],
    values: Mapping[str, Any],
    also: Mapping[KeyPath, Any] | None = None,
) -> dict[Any, Any]:
    """The tree that was flattened when it was written; lists come back as lists.

    Args:
        places: in the tree, by name.
        values: by name.
        also: more values, by their places.
    """
    root: dict[Any, Any] = {}
    for place, value in [*((places[n], v) for n, v in values.items()), *(also or {}).items()]:
        node = root
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node[place[-1]] = value
    listed: dict[Any, Any] = _with_lists(root)
    return listed


def _with_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {key: _with_lists(value) for key, value in tree.items()}
    if inner and all(type(key) is int for key in inner):
        return [inner[key] for key in sorted(inner)]
    return inner


def read_metadata(path: Path) -> Metadata:
    """The index of a folder, made of the types that belong there.

    Args:
        path: of the folder.

    Raises:
        CheckpointError: it is damaged.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        with (path / METADATA).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"{METADATA} is not an index")
        for info in metadata.storage_data.values():
            inside = Path(info.relative_path)
            if inside.is_absolute() or ".." in inside.parts:
                raise CheckpointError(
                    f"{path} names the file {escaped(str(inside), 300)}, which is not inside it."
                )
        for name, found in metadata.state_dict_metadata.items():
            _check_parts(name, found)
    except pickles.DAMAGE as error:
        raise _damaged(path, error) from None
    return metadata


def _check_parts(name: str, found: Any) -> None:
    """Refuse a tensor of which parts are missing: nobody would notice what is in their place."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

    if isinstance(found, BytesStorageMetadata):
        return
    if not isinstance(found, TensorStorageMetadata):
        raise pickle.UnpicklingError(f"{name} is neither a tensor nor a value")
    size: tuple[Any, ...] = tuple(found.size)
    dtype: Any = found.properties.dtype
    if not isinstance(dtype, torch.dtype) or any(type(axis) is not int for axis in size):
        raise pickle.UnpicklingError(f"{name} has a shape or a dtype that no tensor has")
    parts = [(tuple(part.offsets), tuple(part.sizes)) for part in found.chunks]
    if not all(_inside(size, *part) for part in parts):
        raise pickle.UnpicklingError(f"a part of {name} is outside of it")
    if sum(math.prod(extent) for _, extent in parts) != math.prod(size) or any(
        _overlap(one, other) for one, other in itertools.combinations(parts, 2)
    ):
        raise pickle.UnpicklingError(f"the parts of {name} are not the whole of it, once")


def _inside(size: Sequence[int], start: Sequence[int], extent: Sequence[int]) -> bool:
    axes = list(zip(size, start, extent, strict=True))
    return all(first >= 0 and count >= 0 and first + count <= whole for whole, first, count in axes)


def _overlap(one: Part, other: Part) -> bool:
    axes = zip(*one, *other, strict=True)
    return all(a < b + n and b < a + m for a, m, b, n in axes)


class _MetadataUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """Makes what indices consist of, and nothing else."""

    def load_build(self) -> None:
        """Give an object its content; a class or a function has none that a file may give."""
        target = self.stack[-2]
        if isinstance(target, type) or not hasattr(target, "__dict__") or callable(target):
            raise pickle.UnpicklingError("it changes something that it did not make")
        super().load_build()

    dispatch: ClassVar[Any] = {**_PythonUnpickler.dispatch, pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        """A type, a dtype, or the function that names a layout."""
        plain = pickles.ALLOWED.get(f"{module}.{name}") if module.startswith("pathlib") else None
        if plain is not None:
            return plain
        dtype = module == "torch" and _DTYPE.fullmatch(name)
        if not dtype and name not in _METADATA_TYPES.get(module, ()):
            raise pickle.UnpicklingError(f"it holds an object of type {module}.{name}")
        return getattr(importlib.import_module(module), name)


def _reader(path: Path, metadata: Metadata) -> Any:
    """Reads the files of a folder, and does not unpickle its index again."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Metadata:
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(path)


def _planner(path: Path) -> Any:
    """Puts what is no tensor into its place, read with restrictions."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            name = read_item.dest_index.fqn
            self.state_dict[name] = pickles.load_bytes(value, f"{path} ({name})")

    return Planner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read as a folder of torch.distributed.checkpoint "
        f"({first_lines(error, 1)}): it is cut short, damaged, or of another kind."
    )
