"""New tensors in a folder of torch.distributed.checkpoint, put there by the library's writer.

The folder has more files than there are processes, each of some tensors, so that the same files
come about whoever writes which; large tensors are in parts there. The index is written when all
files are complete: without it, nothing in the folder counts.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxrebasin.errors import EquivalenceError
from fxrebasin.rounding import rounded
from fxrebasin.running.freed import give_back_memory
from fxrebasin.storage.distributed import METADATA
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.bundles import bundles
from fxrebasin.streaming.distributed_folder import DistributedFolder
from fxrebasin.streaming.making import Item, Recipe, cast, items_of, pieces_of, ranges
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.records import file_digest, keep_record, record_of
from fxrebasin.streaming.safetensors_file import bytes_of
from fxrebasin.streaming.stored import Stored

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import WriteItem


@dataclass(frozen=True)
class NewPart:
    """A file of such a folder.

    Args:
        number: of the file.
        like: the folder that was read.
        items: tensors, by their names in the index.
        tensors: their forms there, by the same names.
        values: names of what is no tensor, which is copied.
    """

    number: int
    like: DistributedFolder
    items: Mapping[str, Item]
    tensors: Mapping[str, Stored]
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the file, as the library has it."""
        return f"__{self.number}_0.distcp"

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(stored.bytes for stored in self.tensors.values())

    def is_complete(self, recipe: Recipe, folder: Path) -> bool:
        """Whether it was written, and still is what was found right; all of it is read again.

        Args:
            recipe: of the new tensors.
            folder: in which the result is put together.
        """
        known = record_of(folder, self.name)
        try:
            return isinstance(known, dict) and file_digest(folder / self.name) == known["digest"]
        except OSError:  # what cannot be read is made anew
            return False

    def write(
        self, opened: Opened, recipe: Recipe, folder: Path, on_write: Callable[[int], None]
    ) -> None:
        """Write it, and read it again.

        Args:
            opened: what tensors that are copied come from.
            recipe: of the new tensors.
            folder: in which the result is put together.
            on_write: called with the number of bytes that were written, or read again.

        Raises:
            EquivalenceError: what was read again is something else.
        """
        from torch.distributed.checkpoint.planner import SavePlan

        digests: dict[str, str] = {}
        chunks = self._chunks(opened, recipe, digests, on_write)
        writer = _writer(folder)
        plan = SavePlan(self._plan())
        # The library names files after processes, by their places in this list.
        (*_, plan) = writer.prepare_global_plan([plan] * (self.number + 1))
        results = writer.write_data(plan, _planner(self.like, chunks)).wait()
        next(chunks, None)  # behind the last one is the digest of its tensor
        parts = [_Written.of(result) for result in results]
        self._check(recipe, folder, parts, digests, on_write)
        known = {
            "digest": file_digest(folder / self.name),
            "parts": [[*vars(part).values()] for part in parts],
        }
        keep_record(folder, self.name, known)

    def _plan(self) -> list[WriteItem]:
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.planner import (
            TensorWriteData,
            WriteItem,
            WriteItemType,
        )

        plan = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self.values]
        form: Any
        for name, form in _forms([self]).items():
            if name in self.tensors:
                plan += [
                    WriteItem(
                        MetadataIndex(name, chunk.offsets, k),
                        WriteItemType.SHARD,
                        tensor_data=TensorWriteData(chunk, form.properties, form.size),
                    )
                    for k, chunk in enumerate(form.chunks)
                ]
        return plan

    def _chunks(
        self,
        opened: Opened,
        recipe: Recipe,
        digests: dict[str, str],
        on_write: Callable[[int], None],
    ) -> Iterator[torch.Tensor]:
        """The parts of all tensors, in the order of the plan."""
        for name, stored in self.tensors.items():
            source = _source(self.like, name)
            rows = [part for part in ranges(source) if part is not None]
            told = hashlib.sha256()
            for _, before, made in pieces_of(opened, recipe, self.items[name], source):
                told.update(bytes_of(before.to(stored.dtype).contiguous()))
                for part in rows if rows and made.shape == stored.shape else [slice(None)]:
                    chunk = rounded(
                        str(name), made[part] if rows else made, stored.dtype
                    ).contiguous()
                    on_write(chunk.nbytes)
                    yield chunk
            digests[name] = told.hexdigest()
            give_back_memory()

    def _check(
        self,
        recipe: Recipe,
        folder: Path,
        parts: Sequence[_Written],
        digests: Mapping[str, str],
        on_write: Callable[[int], None],
    ) -> None:
        """Read all of it again, and compare."""
        written = DistributedFolder(folder, _index([self], [p.result(self.name) for p in parts]))
        wrong = [name for name in self.values if written.value(name) != self.like.value(name)]
        for name, stored in self.tensors.items():
            item, found = self.items[name], hashlib.sha256()
            whole = item.name is not None and recipe.is_whole(item.name)
            for rows in ranges(stored, cut=not whole):
                tensor = written.read_named(name, rows)
                on_write(tensor.nbytes)
                if item.name is not None:
                    tensor = recipe.undo(item.name, tensor)
                found.update(bytes_of(tensor.contiguous()))
            if found.hexdigest() != digests[name]:
                wrong.append(name)
        if wrong:
            raise EquivalenceError(
                f"{self.name}: {wrong[0]} is not, bit for bit, what was to be written there; the "
                "disk or the memory of this machine may be at fault"
            )


@dataclass(frozen=True)
class _Written:
    """Where a part of a tensor, or a value, is in its file.

    Args:
        name: in the index.
        offset: where the part begins in the tensor; None for a value.
        start: in bytes.
        length: in bytes.
    """

    name: str
    offset: tuple[int, ...] | None
    start: int
    length: int

    @classmethod
    def of(cls, result: Any) -> _Written:
        """What the library says about it.

        Args:
            result: a `WriteResult`.
        """
        index, where = result.index, result.storage_data
        offset = None if index.offset is None else tuple(index.offset)
        return cls(index.fqn, offset, where.offset, where.length)

    def result(self, file: str) -> Any:
        """The same for the library.

        Args:
            file: its name.
        """
        from torch.distributed.checkpoint.filesystem import _StorageInfo
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.storage import WriteResult

        index = MetadataIndex(self.name, self.offset)
        return WriteResult(index, self.length, _StorageInfo(file, self.start, self.length))


def new_parts(opened: Opened, dtype: torch.dtype | None, *, others: bool) -> list[NewPart]:
    """The files of a folder that takes the place of one that was read.

    Args:
        opened: the checkpoint.
        dtype: of all floating tensors; as they are when left out.
        others: whether other copies of the weights are brought along; they are left out otherwise.

    Raises:
        WholeOnlyError: there are lists of weights, whose names are not told.
    """
    (like,) = opened.reader.files.values()
    if opened.found.nameless or not isinstance(like, DistributedFolder):
        raise WholeOnlyError(
            f"{opened.path} holds lists of weights, which cannot be brought along a tensor at a "
            "time; save the weights by themselves"
        )
    items = {like.names[place]: item for place, item in items_of(opened, others=others).items()}
    forms = {name: cast(_source(like, name), dtype) for name in items}
    return [
        NewPart(
            number,
            like,
            {name: items[name] for name in names},
            {name: forms[name] for name in names},
            () if number else like.values,
        )
        for number, names in enumerate(bundles(forms))
    ]


def write_index(parts: Sequence[NewPart], folder: Path) -> None:
    """Write the index, behind all else.

    Args:
        parts: that were written, by whatever process.
        folder: in which the result is put together.
    """
    (folder / METADATA).unlink(missing_ok=True)  # an earlier run's, of files that it may have lost
    results = [
        [_Written(*written).result(part.name) for written in record_of(folder, part.name)["parts"]]
        for part in parts
    ]
    index = _index(parts, [result for of_part in results for result in of_part])
    _writer(folder).finish(index, results)


def _source(like: DistributedFolder, name: str) -> Stored:
    """The form of a tensor that was read."""
    found: Any = like.metadata.state_dict_metadata[name]
    return Stored(tuple(found.size), found.properties.dtype)


def _forms(parts: Sequence[NewPart]) -> dict[str, Any]:
    """What the index says about the tensors and values of some files."""
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        TensorStorageMetadata,
    )

    found: dict[str, Any] = {}
    for part in parts:
        found |= {name: BytesStorageMetadata() for name in part.values}
        for name, stored in part.tensors.items():
            size = torch.Size(stored.shape)
            chunks = []
            for rows in ranges(_source(part.like, name)):
                first = [0] * len(size)
                count = list(size)
                if rows is not None:
                    first[0], count[0] = rows.start, rows.stop - rows.start
                chunks.append(ChunkStorageMetadata(torch.Size(first), torch.Size(count)))
            before: Any = part.like.metadata.state_dict_metadata[name]
            properties = replace(before.properties, dtype=stored.dtype)
            found[name] = TensorStorageMetadata(properties, size, chunks)
    return found


def _index(parts: Sequence[NewPart], results: Sequence[Any]) -> Metadata:
    from torch.distributed.checkpoint.metadata import Metadata

    forms = _forms(parts)
    places = parts[0].like.metadata.planner_data or {}
    return Metadata(
        forms,
        planner_data={name: places[name] for name in forms if name in places},
        storage_data={result.index: result.storage_data for result in results},
    )


def _writer(folder: Path) -> Any:
    """The library's, which writes tensors one after the other as they come."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Writer(FileSystemWriter):
        def storage_meta(self) -> StorageMeta:
            """Nothing that differs from run to run."""
            return StorageMeta()

    return Writer(folder, sync_files=True, per_thread_copy_ahead=0)


def _planner(like: DistributedFolder, chunks: Iterator[torch.Tensor]) -> Any:
    """Gives the library what it writes when it comes to that."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.planner import WriteItemType

    class Planner(DefaultSavePlanner):
        def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
            if write_item.type is WriteItemType.BYTE_IO:
                return io.BytesIO(like.value(write_item.index.fqn))
            return next(chunks)

    return Planner()
