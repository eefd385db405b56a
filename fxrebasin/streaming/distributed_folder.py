"""A folder of torch.distributed.checkpoint, of which no more is read than was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import first_lines
from fxrebasin.storage import pickles
from fxrebasin.storage.distributed import METADATA, contents_of, nested, read_metadata
from fxrebasin.storage.tree import KeyPath
from fxrebasin.streaming.archive import Lying, WholeOnlyError, tree_within
from fxrebasin.wording import escaped

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import ReadItem


@dataclass(frozen=True)
class DistributedFolder:
    """A folder of torch.distributed.checkpoint.

    The library says which parts of which files make up what is wanted. It would read each of these
    parts as a whole, which may be a tensor of gigabytes; here only the wanted rows of them are.

    Args:
        path: where it is.
        index: what is in it; that of the folder when left out.
    """

    path: Path
    index: Metadata | None = None

    @cached_property
    def metadata(self) -> Metadata:
        """What is in it."""
        return self.index or read_metadata(self.path)

    @cached_property
    def names(self) -> dict[KeyPath, str]:
        """The names of what is no state of an optimiser, by the places in the tree."""
        places, _, skipped = contents_of(self.path, self.metadata)
        return {
            place: name
            for name, place in places.items()
            if not any(place[: len(above)] == above for above in skipped)
        }

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Names of what is no tensor."""
        _, empty, _ = contents_of(self.path, self.metadata)
        return tuple(name for name in self.names.values() if empty[name] is None)

    @cached_property
    def files(self) -> frozenset[str]:
        """Names of the files that it consists of."""
        found = {info.relative_path for info in self.metadata.storage_data.values()}
        return frozenset({METADATA, *found})

    @cached_property
    def tree(self) -> Any:
        """Tensors on the meta device; what is no tensor is None."""
        places, empty, _ = contents_of(self.path, self.metadata)
        return nested(places, {name: empty[name] for name in self.names.values()})

    @cached_property
    def _found(self) -> dict[MetadataIndex, Lying]:
        return {}

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own."""
        return self.read_named(self.names[place], rows)

    def read_named(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own.

        Args:
            name: in the index.
            rows: a range of positions along the first axis; all when left out.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
        from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

        found: Any = self.metadata.state_dict_metadata[name]  # that of a tensor
        offsets, sizes = [0] * len(found.size), list(found.size)
        if rows is not None:
            offsets[0], sizes[0] = rows.start, rows.stop - rows.start
        whole = torch.empty(sizes, dtype=found.properties.dtype)
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        try:
            for item in create_read_items_for_chunk_list(name, found, [wanted]):
                self._read_part(item, whole)
        except pickles.DAMAGE as error:
            raise self._damaged(error) from None
        return whole

    def value(self, name: str) -> bytes:
        """What is no tensor, as it was written.

        Args:
            name: in the index.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        from torch.distributed.checkpoint.metadata import MetadataIndex

        info = self.metadata.storage_data[MetadataIndex(name)]
        try:
            with (self.path / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                found: bytes = file.read(info.length)
        except OSError as error:
            raise self._damaged(error) from None
        if len(found) < info.length:
            raise CheckpointError(f"{self.path} ends before {escaped(name, 300)} does.")
        return found

    def _read_part(self, item: ReadItem, whole: torch.Tensor) -> None:
        """Put what one part of a tensor has into its place."""
        lying = self._lying(item.storage_index)
        axes = list(zip(item.dest_offsets, item.storage_offsets, item.lengths, strict=True))
        rows = None if not axes else slice(axes[0][1], axes[0][1] + axes[0][2])
        path = self.path / self.metadata.storage_data[item.storage_index].relative_path
        with path.open("rb", buffering=0) as file:
            tensor = lying.read(file, rows)
        for axis, (there, here, count) in enumerate(axes):
            whole = whole.narrow(axis, there, count)
            if axis:
                tensor = tensor.narrow(axis, here, count)
        whole.copy_(tensor)

    def _lying(self, index: MetadataIndex) -> Lying:
        """Where a part of a tensor is."""
        if index not in self._found:
            info = self.metadata.storage_data[index]
            label = f"{self.path} ({escaped(index.fqn, 300)})"
            if getattr(info, "transform_descriptors", None):
                raise WholeOnlyError(f"{label} cannot be read a tensor at a time: it is packed")
            with (self.path / info.relative_path).open("rb") as file:
                found = tree_within(file, info.offset, info.length, label)
            self._check(found, index, label)
            self._found[index] = found
        return self._found[index]

    def _check(self, found: Any, index: MetadataIndex, label: str) -> None:
        """Refuse what is not of the form that the index promises."""
        promised: Any = self.metadata.state_dict_metadata[index.fqn]
        sizes = {tuple(part.offsets): tuple(part.sizes) for part in promised.chunks}
        shape = sizes[tuple(index.offset or ())]
        dtype = promised.properties.dtype
        if not isinstance(found, Lying) or (found.stored.shape, found.stored.dtype) != (
            shape,
            dtype,
        ):
            raise CheckpointError(f"{label} is not what the index of the folder promises.")

    def _damaged(self, error: BaseException) -> CheckpointError:
        if isinstance(error, CheckpointError):
            return error
        return CheckpointError(
            f"{self.path} cannot be read as a folder of torch.distributed.checkpoint "
            f"({first_lines(error, 1)}): it is cut short, damaged, or of another kind."
        )
