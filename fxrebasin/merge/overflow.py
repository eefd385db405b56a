"""What waiting batches hold, in a temporary file instead of in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree

from fxrebasin.errors import CheckpointError
from fxrebasin.merge.held_bytes import storages_in
from fxrebasin.running.batches import Batch


def room_for_overflow() -> int:
    """Bytes that a temporary file can have, with some left for others."""
    try:
        return int(0.9 * shutil.disk_usage(tempfile.gettempdir()).free)
    except OSError:  # there is no folder for such files
        return 0


class Overflow:
    """A temporary file. It has no name where the system can do that, and so never outlives us.

    Attributes:
        emptied: storages whose bytes are in the file now, by address.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="fxrebasin-", buffering=0)  # noqa: SIM115
        self._end = 0
        self.emptied: set[int] = set()

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def reserve(self, size: int) -> int:
        """Where there is room for that many bytes.

        Args:
            size: in bytes.
        """
        place, self._end = self._end, self._end + size
        return place

    def write(self, storage: torch.UntypedStorage, place: int) -> None:
        """Copy a storage to the file.

        Args:
            storage: on any device.
            place: in the file.

        Raises:
            OSError: the file cannot be written.
        """
        staged = torch.empty(storage.nbytes(), dtype=torch.uint8)
        staged.copy_(_bytes_of(storage))
        left = staged.numpy().data
        while left:
            written = os.pwrite(self._file.fileno(), left, place)
            left, place = left[written:], place + written

    def read(self, storage: torch.UntypedStorage, place: int) -> None:
        """Fill a storage from the file.

        Args:
            storage: of the size that it had.
            place: in the file.

        Raises:
            CheckpointError: the file ends before that.
            OSError: the file cannot be read.
        """
        staged = torch.empty(storage.nbytes(), dtype=torch.uint8)
        left = staged.numpy().data
        while left:
            found = os.preadv(self._file.fileno(), [left], place)
            if not found:
                raise CheckpointError("a temporary file ends before what was written to it")
            left, place = left[found:], place + found
        _bytes_of(storage).copy_(staged)


class Belongings:
    """What the operators of one batch have made, in memory or in a file.

    Args:
        overflow: the file.
        room: bytes to reserve there; None for what stays in memory.
    """

    def __init__(self, overflow: Overflow, room: int | None) -> None:
        self._overflow, self._stays = overflow, room is None
        self._room = room or 0
        self._place = overflow.reserve(self._room)
        self._made: dict[int, StorageWeakRef] = {}
        self._away: list[tuple[StorageWeakRef, int, int]] = []

    def taken(self, batch: Batch) -> Batch:
        """A batch with inputs of its own, which can be put away.

        Args:
            batch: of a loader, which may hold on to it.
        """
        if self._stays:
            return batch
        known: dict[int, Any] = {}

        def own(value: Any) -> Any:
            if type(value) is not torch.Tensor or value.layout != torch.strided:
                return value
            if id(value) not in known:
                copy = value.detach().clone()
                same = copy.stride() == value.stride() and not value.requires_grad
                known[id(value)] = copy if same else value
                self.note((), copy if same else ())
            return known[id(value)]

        args, kwargs = _pytree.tree_map(own, (batch.args, batch.kwargs))
        return replace(batch, args=args, kwargs=kwargs, targets=None)

    def note(self, operands: Any, result: Any) -> None:
        """An operator was computed; what it returns of others' memory is not of this batch.

        Args:
            operands: tensors in containers.
            result: likewise.
        """
        if self._stays:
            return
        given = {storage._cdata for storage in storages_in(operands)}
        for storage in storages_in(result):
            if storage._cdata not in given:
                self._made[storage._cdata] = StorageWeakRef(storage)

    def leave_out(self, tensors: Sequence[torch.Tensor]) -> None:
        """What stays in memory.

        Args:
            tensors: those.
        """
        for storage in storages_in(list(tensors)):
            self._made.pop(storage._cdata, None)

    def reach_into_file(self, operands: Any) -> bool:
        """Whether any bytes of operands are in the file, of whichever batch.

        Args:
            operands: tensors in containers.
        """
        emptied = self._overflow.emptied
        return bool(emptied) and any(s._cdata in emptied for s in storages_in(operands))

    def put_away(self) -> None:
        """Move what is held to the file.

        Raises:
            OSError: the file cannot be written.
        """
        self._made = {key: ref for key, ref in self._made.items() if not ref.expired()}
        # Memory that NumPy shares says that it cannot change its size.
        found = [
            (ref, storage, storage.nbytes())
            for ref in self._made.values()
            if (storage := _alive(ref)) is not None and storage.resizable() and storage.nbytes()
        ]
        total = sum(size for _, _, size in found)
        if total > self._room:
            self._place, self._room = self._overflow.reserve(total), total
        place = self._place
        for ref, storage, size in found:
            self._overflow.write(storage, place)
            self._away.append((ref, place, size))
            self._overflow.emptied.add(storage._cdata)
            storage.resize_(0)
            place += size

    def bring_back(self) -> None:
        """Have all in memory again.

        Raises:
            OSError: the file cannot be read.
        """
        for ref, place, size in self._away:
            storage = _alive(ref)
            if storage is not None:
                storage.resize_(size)
                self._overflow.read(storage, place)
            self._overflow.emptied.discard(ref.cdata)
        self._away.clear()


def _alive(ref: StorageWeakRef) -> torch.UntypedStorage | None:
    # Without a look whether it is alive, which another thread may end meanwhile.
    found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
    return found


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
