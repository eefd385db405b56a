"""ONNX files as bytes: weights are written and read one tensor at a time, never all at once.

`onnx.save` and `onnx.load` hold all weights twice. A protocol buffer is a sequence of fields, each
with its number and its length: a file can be written in pieces, and searched by skipping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

import onnx

from fxrebasin.errors import CheckpointError, FxRebasinError
from fxrebasin.storage.content_names import named_by_content

_GRAPH, _INITIALIZER, _RAW = 7, 5, 9  # numbers of fields: of a model, of a graph, of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is encoded
_ALIGNED = 64 * 1024  # what an operating system maps into memory begins at multiples of this
_MOST_BITS = 64  # of a number
_PAGE = 4096  # bytes that are read at once where one is looked at


class _DamagedError(FxRebasinError):
    """Bytes that are no sequence of fields; who knows the file says which one it is."""


@dataclass(frozen=True)
class Weight:
    """One initializer to be written.

    Attributes:
        header: name, shape and type; no data.
        size: number of bytes.
        data: makes the bytes, little-endian.
        same: what weights have in common that hold the same numbers.
    """

    header: onnx.TensorProto
    size: int
    data: Callable[[], bytes | memoryview]
    same: object = None


@dataclass(frozen=True)
class Extent:
    """Where the bytes of a tensor are."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Stored:
    """An initializer as a file has it.

    Attributes:
        header: name, shape and type; also small data that are not raw bytes.
        place: of the raw bytes; None if there are none.
    """

    header: onnx.TensorProto
    place: Extent | None


def write_embedded(model: onnx.ModelProto, weights: Sequence[Weight], path: Path) -> None:
    """Write a model with its weights in one file.

    Args:
        model: without initializers in its main graph.
        weights: the initializers.
        path: of the file.
    """
    graph = model.graph.SerializeToString(deterministic=True)
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    fields = [_Field(weight) for weight in weights]
    with path.open("wb") as file:
        file.write(rest.SerializeToString(deterministic=True))
        file.write(_tag(_GRAPH) + _varint(len(graph) + sum(field.size for field in fields)))
        file.write(graph)
        for field in fields:
            file.write(field.head)
            file.write(field.weight.data())


def write_data(weights: Sequence[Weight], owner: Path) -> dict[str, Extent]:
    """Write the bytes of weights one after the other; those with the same numbers once.

    Args:
        weights: to be written.
        owner: the model's file, beside which they go to a file that has a name of its content.
    """
    offsets: dict[str, int] = {}
    written: dict[object, int] = {}
    draft = owner.with_name(f"{owner.name}.data")
    with draft.open("wb") as file:
        for weight in weights:
            offset = written.get(weight.same)
            if weight.same is None or offset is None:
                offset = _append(weight, file)
                written[weight.same] = offset
            offsets[weight.header.name] = offset
    path = named_by_content(draft, owner.name)
    return {
        weight.header.name: Extent(path, offsets[weight.header.name], weight.size)
        for weight in weights
    }


def _append(weight: Weight, file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % _ALIGNED))
    offset = file.tell()
    file.write(weight.data())
    return offset


def with_data_elsewhere(
    model: onnx.ModelProto, weights: Sequence[Weight], places: Mapping[str, Extent]
) -> onnx.ModelProto:
    """A small model whose weights are in other files; those without a place are in the model.

    Args:
        model: without initializers in its main graph.
        weights: the initializers.
        places: by the name of a weight.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for weight in weights:
        tensor = whole.graph.initializer.add()
        tensor.CopyFrom(weight.header)
        place = places.get(tensor.name)
        if place is None:
            tensor.raw_data = bytes(weight.data())
            continue
        _refer(tensor, place)
    return whole


def _refer(tensor: onnx.TensorProto, place: Extent) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    values = {"location": place.path.name, "offset": place.offset, "length": place.size}
    for key, value in values.items():
        tensor.external_data.add(key=key, value=str(value))


def with_data_outside(path: Path, least: int) -> onnx.ModelProto:
    """The model of a file as it is read, small: the data of its initializers stay in that file.

    Args:
        path: of the file.
        least: bytes of an initializer that stay outside.

    Raises:
        CheckpointError: the file is cut off, or is no ONNX model.
    """

    def refer(tensor: onnx.TensorProto, place: Extent) -> bool:
        if place.size >= least:
            _refer(tensor, place)
        return place.size >= least

    return _read(path, refer)


def with_data_left(
    path: Path, leave: Callable[[onnx.TensorProto, int], bool]
) -> tuple[onnx.ModelProto, dict[str, Extent]]:
    """The model of a file, and where in it those data are that were not read.

    Args:
        path: of the file.
        leave: whether the data of an initializer stay where they are, by what the file says of it,
            and by how many bytes it has; then the model has empty data for it, which `write_filled`
            fills.

    Raises:
        CheckpointError: the file is cut off, or is no ONNX model.
    """
    places: dict[str, Extent] = {}

    def left(tensor: onnx.TensorProto, place: Extent) -> bool:
        if not tensor.name or tensor.name in places or not leave(tensor, place.size):
            return False
        places[tensor.name] = place
        tensor.raw_data = b""
        return True

    return _read(path, left), places


def _read(path: Path, left: Callable[[onnx.TensorProto, Extent], bool]) -> onnx.ModelProto:
    """The model of a file, but for data that are said to be left where they are."""
    model = onnx.ModelProto()
    with _opened(path) as whole:
        for start, number, span in whole.pieces():
            if number != _GRAPH:
                model.MergeFromString(span.view.part(start, span.stop))
                continue
            for begin, kind, inner in span.pieces():
                if kind != _INITIALIZER:
                    model.graph.MergeFromString(inner.view.part(begin, inner.stop))
                    continue
                header, raw = _apart(inner)
                tensor = model.graph.initializer.add()
                tensor.CopyFrom(header)
                if raw is not None and not left(tensor, Extent(path, raw.start, raw.size)):
                    tensor.raw_data = raw.view.part(raw.start, raw.stop)
    return model


def write_filled(model: onnx.ModelProto, weights: Mapping[str, Weight], path: Path) -> None:
    """Write a model as protobuf does, with data that it has empty.

    Args:
        model: some of its initializers have empty data.
        weights: these, by name.
        path: of the file.
    """
    small = model.SerializeToString()
    pieces: list[bytes | Weight] = []
    for start, number, span in _Span(_View(BytesIO(small)), 0, len(small)).pieces():
        if number == _GRAPH:
            pieces += _field(_GRAPH, _filled_graph(span, weights))
        else:
            pieces.append(small[start : span.stop])
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece.data() if isinstance(piece, Weight) else piece)


def _filled_graph(graph: _Span, weights: Mapping[str, Weight]) -> Iterator[bytes | Weight]:
    for start, number, span in graph.pieces():
        name = _apart(span)[0].name if number == _INITIALIZER else ""
        if name in weights:
            yield from _field(_INITIALIZER, _filled(span, weights[name]))
        else:
            yield span.view.part(start, span.stop)


def _filled(tensor: _Span, weight: Weight) -> Iterator[bytes | Weight]:
    for start, number, span in tensor.pieces():
        if number == _RAW:
            yield from _field(_RAW, [weight])
        else:
            yield span.view.part(start, span.stop)


def _field(number: int, content: Iterable[bytes | Weight]) -> list[bytes | Weight]:
    """A field with its number and its length."""
    pieces = list(content)
    size = sum(piece.size if isinstance(piece, Weight) else len(piece) for piece in pieces)
    return [_tag(number) + _varint(size), *pieces]


def stored_initializers(path: Path) -> Iterator[Stored]:
    """The initializers of a file's main graph, found without reading their data.

    Args:
        path: of an ONNX file; other files that it names are looked for beside it.

    Raises:
        CheckpointError: the file is cut off, or is no ONNX model.
    """
    with _opened(path) as whole:
        for number, graph in whole.fields():
            if number == _GRAPH:
                weights = (tensor for n, tensor in graph.fields() if n == _INITIALIZER)
                yield from (_stored(tensor, path) for tensor in weights)


@contextmanager
def _opened(path: Path) -> Iterator[_Span]:
    """The fields of a file; what is wrong with them is said to be wrong with it."""
    try:
        with path.open("rb", buffering=0) as file:
            view = _View(file)
            if not len(view):
                raise _DamagedError("it is empty")
            yield _Span(view, 0, len(view))
    except (IndexError, ValueError, _DamagedError) as error:
        raise CheckpointError(f"{path} is cut off, or is not an ONNX model: {error}") from error


def _stored(tensor: _Span, path: Path) -> Stored:
    header, raw = _apart(tensor)
    if header.data_location == onnx.TensorProto.EXTERNAL:
        return Stored(header, _external(header, path))
    return Stored(header, None if raw is None else Extent(path, raw.start, raw.size))


def _apart(tensor: _Span) -> tuple[onnx.TensorProto, _Span | None]:
    """A tensor without its raw bytes, and these."""
    header, raw = onnx.TensorProto(), None
    for start, number, span in tensor.pieces():
        if number == _RAW:
            raw = span
        else:
            header.MergeFromString(tensor.view.part(start, span.stop))
    return header, raw


def _external(header: onnx.TensorProto, path: Path) -> Extent:
    values = {entry.key: entry.value for entry in header.external_data}
    data = path.with_name(values["location"])
    offset = int(values.get("offset", 0))
    return Extent(data, offset, int(values.get("length", data.stat().st_size - offset)))


class _View:
    """The bytes of a file, read where they are looked at.

    They are not mapped: to look at what was cut off meanwhile would end the process.

    Args:
        file: to be read.
    """

    def __init__(self, file: BinaryIO | FileIO) -> None:
        self._file, self._size = file, file.seek(0, SEEK_END)
        self._page, self._start = b"", 0

    def __len__(self) -> int:
        """The size of the file when it was opened."""
        return self._size

    def __getitem__(self, position: int) -> int:
        """One byte.

        Raises:
            IndexError: it is behind the end.
        """
        if not self._start <= position < self._start + len(self._page):
            self._start, self._page = position, self._read(position, _PAGE)
        return self._page[position - self._start]

    def part(self, start: int, stop: int) -> bytes:
        """Some bytes.

        Args:
            start: where they begin.
            stop: where they end.

        Raises:
            IndexError: they end behind the end.
        """
        found = self._read(start, stop - start)
        if len(found) < stop - start:
            raise IndexError(f"there are no {stop - start} bytes at {start}")
        return found

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        parts = []
        while count and (part := self._file.read(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@dataclass(frozen=True)
class _Span:
    """Bytes that hold a sequence of fields."""

    view: _View
    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    def fields(self) -> Iterator[tuple[int, _Span]]:
        """Number and content of each field."""
        return ((number, span) for _, number, span in self.pieces())

    def pieces(self) -> Iterator[tuple[int, int, _Span]]:
        """Where a field begins, its number and its content."""
        position = self.start
        while position < self.stop:
            begin = position
            key, position = self._number(position)
            size, position = self._size(key & 7, position)
            if position + size > self.stop:
                raise _DamagedError(f"a field at byte {begin} is longer than what holds it")
            yield begin, key >> 3, _Span(self.view, position, position + size)
            position += size

    def _size(self, encoding: int, position: int) -> tuple[int, int]:
        if encoding == _BYTES:
            return self._number(position)
        if encoding == _VARINT:
            return self._number(position)[1] - position, position
        if encoding in (_FIXED32, _FIXED64):
            return (4 if encoding == _FIXED32 else 8), position
        raise _DamagedError(f"byte {position} asks for encoding {encoding}, which does not exist")

    def _number(self, position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = self.view[position]
            value |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if not byte & 0x80:
                return value, position
            if shift > _MOST_BITS:
                raise _DamagedError(f"the number at byte {position - 1} does not end")


class _Field:
    """A weight as a field of a graph, all but its data."""

    def __init__(self, weight: Weight) -> None:
        header = weight.header.SerializeToString(deterministic=True)
        header += _tag(_RAW) + _varint(weight.size)
        inner = len(header) + weight.size
        self.weight = weight
        self.head = _tag(_INITIALIZER) + _varint(inner) + header
        self.size = len(self.head) + weight.size


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)


def _varint(value: int) -> bytes:
    return bytes(_septets(value))


def _septets(value: int) -> Iterable[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
