"""safetensors files a tensor at a time: read by position, and written as they grow.

The library maps whole files, whose pages then count as memory, and writes from memory alone. Here
tensors are read into memory of their own, and written one after the other behind a header that is
known beforehand. Whether a file is intact is for the library to say, which looks at it first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from fxrebasin.errors import CheckpointError
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.tree import KeyPath
from fxrebasin.streaming.stored import Stored

_LENGTH = 8
_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """The header of a file: where each tensor is.

    Args:
        header: its bytes, with the length in front.
        tensors: shapes and dtypes, in the order of the data.
        starts: where each begins, behind the header.
        metadata: texts by name.
    """

    header: bytes
    tensors: Mapping[str, Stored]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.header) + sum(stored.bytes for stored in self.tensors.values())


def layout_of(path: Path) -> Layout:
    """The header of a file.

    Args:
        path: of the file.

    Raises:
        CheckpointError: it is damaged, or holds numbers of a kind that torch does not have.
    """
    try:
        with safe_open(path, framework="pt"):  # which checks header and size
            pass
        with path.open("rb") as file:
            start = file.read(_LENGTH)
            header = start + file.read(int.from_bytes(start, "little"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file ({first_lines(error, 1)}): it is cut short, "
            "damaged, or of another kind. Download or save it again."
        ) from error
    document: dict[str, Any] = json.loads(header[_LENGTH:])
    metadata = document.pop(_METADATA, {})
    unknown = sorted({item["dtype"] for item in document.values()} - _DTYPES.keys())
    if unknown:
        raise CheckpointError(f"{path} holds numbers of the kinds {', '.join(unknown)}")
    items = sorted(document.items(), key=lambda item: item[1]["data_offsets"])
    tensors = {n: Stored(tuple(v["shape"]), _DTYPES[v["dtype"]]) for n, v in items}
    starts = {n: len(header) + v["data_offsets"][0] for n, v in items}
    return Layout(header, tensors, starts, metadata)


def new_layout(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> Layout:
    """A header for a file that is to be written, with tensors in a given order.

    Args:
        tensors: shapes and dtypes.
        metadata: texts by name.

    Example:
        >>> new_layout({"w": Stored((2,), torch.float32)}, {}).starts["w"] % 8
        0
    """
    document: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    # As the library has them: the widest numbers first, so that all are aligned.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    end = 0
    offsets = {}
    for name in order:
        stored = tensors[name]
        offsets[name] = end
        document[name] = {
            "dtype": _NAMES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [end, end + stored.bytes],
        }
        end += stored.bytes
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _LENGTH) * _LENGTH)
    header = len(text).to_bytes(_LENGTH, "little") + text
    starts = {name: len(header) + offset for name, offset in offsets.items()}
    return Layout(header, {name: tensors[name] for name in order}, starts, metadata)


def read_rows(file: FileIO, stored: Stored, start: int, rows: slice | None) -> torch.Tensor:
    """A tensor, or some of its rows, in memory of its own.

    Args:
        file: that holds it.
        stored: its form.
        start: where it begins in the file.
        rows: a range of positions along the first axis; all when left out.

    Raises:
        CheckpointError: the file ends before it does.
    """
    shape = stored.shape
    if rows is not None:
        start += rows.start * stored.bytes_of_row
        shape = (rows.stop - rows.start, *shape[1:])
    tensor = torch.empty(shape, dtype=stored.dtype)
    memory = bytes_of(tensor)
    file.seek(start)
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done:])
        if not count:
            raise CheckpointError(f"{file.name} ends before its tensors do; was it changed?")
        done += count
    return tensor


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece.

    Args:
        tensor: contiguous, on the CPU.
    """
    if not tensor.numel():
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def growing(path: Path, layout: Layout) -> Iterator[BinaryIO]:
    """A file that appears at its place when all of it was written, and is on the disk.

    Args:
        path: the place.
        layout: its header, which is written first; data is written at the places that it names.
    """
    draft = path.with_name(f".{path.name}.part")
    with draft.open("wb") as file:
        file.write(layout.header)
        yield file
        file.truncate(layout.bytes)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_rows(file: BinaryIO, start: int, tensor: torch.Tensor) -> None:
    """Put a tensor, or some of its rows, into its place.

    Args:
        file: from `growing`.
        start: where in the file.
        tensor: on the CPU.
    """
    file.seek(start)
    file.write(bytes_of(tensor.contiguous()))


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file.

    Args:
        path: where it is.
        layout: its header.
    """

    path: Path
    layout: Layout

    @property
    def tree(self) -> Any:
        """Tensors by name."""
        return {name: stored.on_meta() for name, stored in self.layout.tensors.items()}

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        (name,) = place
        with self.path.open("rb", buffering=0) as file:
            return read_rows(file, self.layout.tensors[name], self.layout.starts[name], rows)
