"""Files of data that belong to a model: where in them tensors go that hold other numbers now.

Writers keep data once that are the same for several tensors, and nothing in the format forbids that
places overlap. Tensors that then hold different numbers need places of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import TensorProto
from torch import Tensor

from fxrebasin.importers.onnx.dtypes import dtype_of
from fxrebasin.importers.onnx.tensors import bytes_of, place_of, size_of

_ALIGNED = 4096
"""Bytes of which the offset of data that are added to a file is a multiple."""


@dataclass(frozen=True, eq=False)
class Outside:
    """A tensor whose data are in a file of their own.

    Args:
        item: what the model says of it; changed where the data move.
        content: makes its new numbers; None if it keeps those that it has.
    """

    item: TensorProto
    content: Callable[[], Tensor] | None

    @property
    def size(self) -> int:
        """The number of bytes."""
        length = place_of(self.item)[2]
        dtype = dtype_of(self.item.data_type)
        return size_of(self.item) * dtype.itemsize if length is None else length

    @property
    def place(self) -> range:
        """The bytes of the file."""
        offset = place_of(self.item)[1]
        return range(offset, offset + self.size)

    def say(self, key: str, value: int) -> None:
        """Have the model say something about the data.

        Args:
            key: what of them.
            value: what it is.
        """
        entries = {entry.key: entry for entry in self.item.external_data}
        entry = entries.get(key) or self.item.external_data.add(key=key)
        entry.value = str(value)


def write_into(files: Mapping[str, Path], tensors: Iterable[Outside]) -> None:
    """Write tensors where they are kept, or behind all others where they would overwrite some.

    Args:
        files: of data, by where the model says that these are; they are changed.
        tensors: all of the model whose data are in files.
    """
    found: dict[str, list[Outside]] = {location: [] for location in files}
    for tensor in tensors:
        found[place_of(tensor.item)[0]].append(tensor)
    for location, path in files.items():
        before = path.stat().st_size
        for group in _overlapping(found[location]):
            _write_group(path, group)
        if path.stat().st_size > before:
            for tensor in found[location]:  # data of no length reach to the end of the file
                tensor.say("length", tensor.size)


def _overlapping(tensors: Iterable[Outside]) -> Iterator[list[Outside]]:
    """Tensors in groups; those of different ones have no byte in common."""
    group: list[Outside] = []
    stop = 0
    for tensor in sorted(tensors, key=lambda one: (one.place.start, one.place.stop, one.item.name)):
        if group and tensor.place.start >= stop:
            yield group
            group = []
        group.append(tensor)
        stop = max(stop, tensor.place.stop)
    if group:
        yield group


def _write_group(path: Path, group: Sequence[Outside]) -> None:
    """Write those of a group that get new numbers; several that get the same stay in one place.

    Args:
        path: of the file.
        group: tensors of which each may overlap others.
    """
    kept: list[tuple[range, Tensor | None]] = [
        (tensor.place, None) for tensor in group if tensor.content is None
    ]
    added: list[tuple[range, Tensor, int]] = []
    for tensor in group:
        if tensor.content is None:
            continue
        place, content = tensor.place, tensor.content()
        met = [other for other in kept if _meet(place, other[0])]
        if not met:
            _write(path, place.start, content)
            kept.append((place, content))
        elif any(own != place or held is None or not _alike(held, content) for own, held in met):
            there = (at for own, held, at in added if own == place and _alike(held, content))
            offset = next(there, None)
            if offset is None:
                offset = -(-path.stat().st_size // _ALIGNED) * _ALIGNED
                _write(path, offset, content)
                added.append((place, content, offset))
            tensor.say("offset", offset)


def _meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bytes, whatever their shapes."""
    return torch.equal(*(item.contiguous().reshape(-1).view(torch.uint8) for item in (one, other)))


def _write(path: Path, offset: int, tensor: Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes_of(tensor))
