"""Where tensors lie in what `torch.save` wrote, and their numbers, read by position.

Nothing is mapped and nothing read that was not asked for: such an archive may be a file or a part
of one, as in folders of torch.distributed.checkpoint.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import first_lines
from fxrebasin.storage import pickles
from fxrebasin.storage.tree import is_tensor
from fxrebasin.streaming.safetensors_file import read_rows
from fxrebasin.streaming.stored import Stored


class WholeOnlyError(CheckpointError):
    """A checkpoint can only be read or written as a whole."""


@dataclass(frozen=True)
class Lying:
    """A tensor in a file.

    Args:
        stored: its form.
        start: where its first number is, in bytes.
        stride: of its axes, in numbers.
    """

    stored: Stored
    start: int
    stride: tuple[int, ...]

    def read(self, file: FileIO, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or some of its rows, in memory of its own.

        Args:
            file: that holds it.
            rows: a range of positions along the first axis; all when left out.

        Raises:
            CheckpointError: the file ends before it does.
        """
        shape, start, dtype = self.stored.shape, self.start, self.stored.dtype
        if rows is not None:
            start += rows.start * self.stride[0] * dtype.itemsize
            shape = (rows.stop - rows.start, *shape[1:])
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        span = 1 + sum((n - 1) * step for n, step in zip(shape, self.stride, strict=True))
        flat = read_rows(file, Stored((span,), dtype), start, None)
        found = flat.as_strided(shape, self.stride)
        return found if found.is_contiguous() else found.contiguous()


def tree_of(path: Path) -> Any:
    """What is in a file, with `Lying` in the place of tensors; those of one memory are equal.

    Args:
        path: of the file.

    Raises:
        WholeOnlyError: its numbers do not lie there as they are in memory, or not one by one.
        CheckpointError: it is damaged, or holds objects other than tensors and plain values.
    """
    with path.open("rb") as file:
        _check_lies_plain(file, str(path))
    with FakeTensorMode():
        found = pickles.load_pickle(path)
    return _lying(found, 0, str(path))


class _Within(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise CheckpointError("it asks for what is before its beginning")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)  # type: ignore[attr-defined]  # a file has it
        self._at += count
        return int(count)


def tree_within(file: BinaryIO, start: int, length: int, label: str) -> Any:
    """The same for an archive within a larger file.

    Args:
        file: the larger file.
        start: where the archive begins.
        length: of the archive.
        label: what it is, for messages.

    Raises:
        WholeOnlyError: its numbers do not lie there as they are in memory, or not one by one.
        CheckpointError: it is damaged, or holds objects other than tensors and plain values.
    """
    part: Any = _Within(file, start, length)
    _check_lies_plain(part, label)
    part.seek(0)
    with FakeTensorMode():
        found = pickles.load_bytes(part, label)
    return _lying(found, start, label)


def _check_lies_plain(file: IO[bytes], label: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            packed = any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist())
            order = [n for n in archive.namelist() if n.endswith("/byteorder")]
            swapped = any(archive.read(name) != b"little" for name in order)
    except pickles.DAMAGE as error:
        raise CheckpointError(f"{label} is damaged ({first_lines(error, 1)}).") from None
    if packed or swapped:
        raise WholeOnlyError(
            f"{label} cannot be read a tensor at a time: it is packed, or of a machine with "
            "another order of bytes. Save it once with the installed torch"
        )


def _lying(value: Any, start: int, label: str) -> Any:
    if is_tensor(value):
        return _place_of(value, start, label)
    if isinstance(value, dict):
        return {key: _lying(item, start, label) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_lying(item, start, label) for item in value)
    return value


def _place_of(tensor: torch.Tensor, start: int, label: str) -> Lying:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    offset = tensor.untyped_storage()._checkpoint_offset if plain else None
    if offset is None:
        raise WholeOnlyError(
            f"{label} cannot be read a tensor at a time: it holds tensors that are sparse, "
            "quantised, or without values. Save the weights themselves, dense"
        )
    dtype = tensor.dtype
    begin = start + offset + int(tensor.storage_offset()) * dtype.itemsize
    return Lying(Stored(tuple(tensor.shape), dtype), begin, tuple(tensor.stride()))
