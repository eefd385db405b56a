"""The file format of a permutation: a safetensors file that says what it is.

Tensors `array.<class>` hold the permutations. The metadata holds the format's name and version, and
one JSON document with the classes, the layout, the constants that were relied on, the outputs and
buffers that were chosen, the architecture that it was made for, and digests of the states that it
was made from; and a checksum of all that. Files of version 1 have no checksum and no architecture;
they are read, with the checks that are possible. Positions are written as an offset and strides
where they are regular, otherwise as a tensor `positions.<number>`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fxrebasin.architecture import Architecture, TensorKind, listing
from fxrebasin.choices import FoundWith
from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.facts import counted
from fxrebasin.indexing import misfits
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass, Piece, Slab, Slot
from fxrebasin.reliance import Reliance, Relied
from fxrebasin.storage.files import publish
from fxrebasin.storage.safetensors_header import settled
from fxrebasin.wording import escaped

FORMAT = "fxrebasin.permutation"
VERSION = "2"
_SPOKEN = {FORMAT: "a permutation", "fxrebasin.alignment": "an alignment (signs or matrices, too)"}
_UNCHECKED = "1"  # a version that had no checksum

# A damaged or hostile file must not ask for all the memory there is. The largest models have some
# ten million positions; each takes 8 bytes.
_MOST_POSITIONS = 2**27
_LARGEST_POSITION = 2**48
_MOST_AXES = 64  # of a tensor, in torch

Array: TypeAlias = npt.NDArray[Any]

Contents = tuple[tuple[PermutationClass, ...], dict[str, IntArray], Layout, Relied, FoundWith]
"""Classes, arrays by class name, layout by state tensor name, what is relied on, and choices."""


def write_permutation(path: Path, contents: Contents, overwrite: bool) -> None:
    """Write a certificate beside its place, then move it there.

    Args:
        path: of the file.
        contents: what it holds.
        overwrite: replace a file that exists.

    Raises:
        CheckpointError: the file exists, or cannot be written.
    """
    try:
        publish(path, payload(contents), overwrite=overwrite)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def payload(contents: Contents) -> bytes:
    """What the file of a certificate holds; the same bytes for the same contents.

    Args:
        contents: what it holds.
    """
    return packed(FORMAT, *described(contents))


def described(contents: Contents) -> tuple[dict[str, Array], dict[str, Any]]:
    """A permutation as tensors and a document, without the format around them.

    Args:
        contents: what it holds.
    """
    classes, arrays, layout, relies_on, found_with = contents
    tensors: dict[str, Array] = {}
    tensors |= {f"array.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    document = {
        "classes": [class_document(c) for c in classes],
        "layout": layout_document(layout, tensors),
        "relies_on": {
            name: {"digest": item.digest, "uniform": item.uniform}
            for name, item in relies_on.items()
        },
        "found_with": {
            "state_buffers": found_with.state_buffers,
            "outputs": found_with.outputs,
            "function": found_with.function,
        },
        "architecture": listing(found_with.architecture),
        "states": dict(sorted(found_with.states.items())),
    }
    return tensors, document


def packed(kind: str, tensors: Mapping[str, Array], document: Mapping[str, Any]) -> bytes:
    """The bytes of a file; the same for the same contents.

    Args:
        kind: the name of the format.
        tensors: by name.
        document: all else.
    """
    described = json.dumps(document)
    metadata = {"format": kind, "version": VERSION, "document": described}
    metadata["checksum"] = _checksum(described, tensors)
    return settled(safetensors.numpy.save(dict(tensors), metadata))


def format_of(path: Path) -> str | None:
    """The name of the format of a file. Call it inside `naming`, which words what is wrong.

    Args:
        path: of the file.
    """
    _refuse_others(path)
    with safetensors.safe_open(path, framework="np") as file:
        return (file.metadata() or {}).get("format")


def unpacked(path: Path, kind: str, spoken: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `packed` put into a file.

    Args:
        path: of the file.
        kind: the name of the format.
        spoken: what is called so, for messages.

    Raises:
        InputError: it is a safetensors file of another format or version.
    """
    _refuse_others(path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != kind:
            other = _SPOKEN.get(metadata.get("format", ""))
            found = f"it holds {other}" if other else "it is a safetensors file"
            raise InputError(f"{found}, but not {spoken} that was saved here")
        version = metadata.get("version")
        if version not in (VERSION, _UNCHECKED):
            raise InputError(
                f"it has version {escaped(version)}; this release reads the versions {_UNCHECKED} "
                f"and {VERSION}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    document = metadata["document"]
    if version != _UNCHECKED and metadata.get("checksum") != _checksum(document, tensors):
        raise InputError("its checksum is not that of what it holds: it is damaged, or was edited")
    return tensors, json.loads(document)


def _refuse_others(path: Path) -> None:
    """Refuse pipes and the like, which would be waited for."""
    if path.exists() and not path.is_file():
        raise InputError("it is no file")


def _checksum(document: str, tensors: Mapping[str, Array]) -> str:
    """SHA-256 of a document and tensors, whatever their order."""
    found = hashlib.sha256(document.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def read_permutation(path: Path) -> Contents:
    """Read and check a certificate. Call it inside `naming`, which words what is wrong.

    Args:
        path: of the file.

    Returns:
        What it holds.
    """
    return contents_from(*unpacked(path, FORMAT, "a permutation"))


def contents_from(tensors: Mapping[str, Array], document: Mapping[str, Any]) -> Contents:
    """What `described` made tensors and a document of.

    Args:
        tensors: by name.
        document: all else.
    """
    classes = tuple(class_from(entry) for entry in document["classes"])
    check_copies(classes)
    layout = layout_from(document["layout"], tensors)
    prefix = "array."
    arrays = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    relies_on = {
        str(name): _reliance(entry) for name, entry in document.get("relies_on", {}).items()
    }
    found_with = _found_with(document["found_with"]) if "found_with" in document else FoundWith()
    architecture = _architecture(document.get("architecture"))
    if architecture is not None:
        _check_places(layout, architecture)
    states = {text(name): text(digest) for name, digest in document.get("states", {}).items()}
    found_with = replace(found_with, architecture=architecture, states=states)
    return classes, arrays, layout, relies_on, found_with


@contextmanager
def naming(path: Path, spoken: str = "permutation") -> Iterator[None]:
    """Turn any fault of a file into a `CheckpointError` that names the file.

    Args:
        path: of the file.
        spoken: what it should hold, for messages.

    Raises:
        CheckpointError: instead of the errors of the parsers and checks inside.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    except InputError as error:
        raise CheckpointError(f"{path} holds no usable {spoken}: {error}") from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} holds a damaged {spoken}: {type(error).__name__} {escaped(error)}"
        ) from error


_DAMAGE = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError, MemoryError),
)


def _architecture(entry: Mapping[str, Any] | None) -> Architecture | None:
    if entry is None:
        return None
    tensors = {
        text(name): TensorKind(
            tuple(between(size, 0, _LARGEST_POSITION) for size in shape), text(dtype)
        )
        for name, (dtype, shape) in entry["tensors"].items()
    }
    return Architecture(tensors, tuple(tuple(map(text, names)) for names in entry["ties"]))


def _check_places(layout: Layout, architecture: Architecture) -> None:
    """Refuse a layout that does not fit the tensors that it is said to be of."""
    for name, groups in layout.items():
        if name not in architecture.tensors:
            raise InputError(f"{escaped(name)} is permuted, but not among the tensors of the model")
        faults = misfits(groups, architecture.tensors[name].shape)
        if faults:
            raise InputError(f"{escaped(name)} {'; '.join(faults)}")


def _reliance(entry: dict[str, Any]) -> Reliance:
    axes = entry["uniform"]
    if type(entry["digest"]) is not str:
        raise InputError(f"found {entry['digest']!r} where a digest belongs")
    uniform = None if axes is None else tuple(between(a, 0, _MOST_AXES - 1) for a in axes)
    return Reliance(entry["digest"], uniform)


def _found_with(entry: dict[str, Any]) -> FoundWith:
    outputs, function = entry["outputs"], entry["function"]
    chosen = None if outputs is None else tuple(map(text, outputs))
    if chosen == () or (chosen is not None and function is not None):
        raise InputError(f"found {outputs!r} and {function!r} where chosen outputs belong")
    buffers = tuple(map(text, entry["state_buffers"]))
    return FoundWith(buffers, chosen, None if function is None else text(function))


def class_document(c: PermutationClass) -> dict[str, Any]:
    """A class for a JSON document.

    Args:
        c: the class.
    """
    return {
        "name": c.name,
        "size": c.size,
        "within": list(c.within),
        "count": c.count,
        "axes": [list(axis) for axis in c.axes],
    }


def class_from(entry: Mapping[str, Any]) -> PermutationClass:
    """The class of a JSON document.

    Args:
        entry: as `class_document` made it.
    """
    return PermutationClass(
        str(entry["name"]),
        between(entry["size"], 0, _LARGEST_POSITION),
        tuple(str(name) for name in entry["within"]),
        between(entry["count"], 0, _LARGEST_POSITION),
        tuple((str(name), between(axis, 0, _MOST_AXES - 1)) for name, axis in entry["axes"]),
    )


def check_copies(
    classes: Sequence[PermutationClass], others: Sequence[PermutationClass] = ()
) -> None:
    """Refuse classes that have not one copy for each index of the classes that they are within.

    Those that were made by hand may say 1, which is the default.

    Args:
        classes: of a document.
        others: that they may be within, beside each other.

    Raises:
        InputError: naming the class, and how many copies it would have.
    """
    sizes = {c.name: c.size for c in (*others, *classes)}
    for c in classes:
        strays = [name for name in c.within if name not in sizes]
        if strays:
            raise InputError(
                f"class {escaped(c.name)} is within {escaped(strays[0])}, which does not exist"
            )
        if len(c.within) > _MOST_AXES:
            raise InputError(f"class {escaped(c.name)} is within {len(c.within)} classes")
        copies = math.prod(sizes[name] for name in c.within)
        if c.count not in (1, copies):
            raise InputError(
                f"class {escaped(c.name)} is said to have {counted(c.count, 'copy', 'copies')}, "
                f"and has {copies}"
            )


def layout_document(layout: Layout, tensors: dict[str, Array]) -> dict[str, Any]:
    """A layout for a JSON document.

    Args:
        layout: by state tensor name.
        tensors: where positions are put that are not regular.
    """
    return {name: [_group_document(g, tensors) for g in groups] for name, groups in layout.items()}


def layout_from(entry: Mapping[str, Any], tensors: Mapping[str, Array]) -> Layout:
    """The layout of a JSON document.

    Args:
        entry: as `layout_document` made it.
        tensors: with positions that are not regular.
    """
    room = _Room()
    return {name: tuple(_group(g, tensors, room) for g in groups) for name, groups in entry.items()}


class _Room:
    """How many positions there may still be."""

    def __init__(self) -> None:
        self._left = _MOST_POSITIONS

    def take(self, shape: tuple[int, ...]) -> None:
        """Refuse a piece, before memory is asked for, that nothing real is as large as."""
        count = math.prod(shape)
        if min(shape, default=1) < 0 or count > self._left:
            raise InputError(f"a piece of shape {shape} is larger than any tensor's axes")
        self._left -= count


def _group_document(group: AxisGroup, tensors: dict[str, Array]) -> dict[str, Any]:
    uncounted = [[slab.axis, list(slab.positions)] for slab in group.uncounted]
    return {
        **({"uncounted": uncounted} if uncounted else {}),
        "axes": list(group.axes),
        "pieces": [
            {
                "slots": [[s.class_name, s.size, list(s.within)] for s in piece.slots],
                "positions": _positions_document(piece.positions, tensors),
            }
            for piece in group.pieces
        ],
    }


def _group(entry: dict[str, Any], tensors: Mapping[str, Array], room: _Room) -> AxisGroup:
    """One axis group, whose positions must be distinct."""
    pieces = []
    for part in entry["pieces"]:
        slots = tuple(
            Slot(None if name is None else str(name), whole(size), tuple(map(whole, within)))
            for name, size, within in part["slots"]
        )
        shape = tuple(slot.size for slot in slots)
        room.take(shape)
        pieces.append(Piece(slots, _positions(part["positions"], shape, tensors)))
    everything = np.concatenate([p.positions.ravel() for p in pieces] or [np.zeros(0, np.int64)])
    if everything.size and (everything.min() < 0 or len(np.unique(everything)) < everything.size):
        raise InputError("two units of the layout share a position, or one is negative")
    slabs = (
        Slab(_axes([axis])[0], tuple(between(at, 0, _LARGEST_POSITION) for at in positions))
        for axis, positions in entry.get("uncounted", [])
    )
    return AxisGroup(_axes(entry["axes"]), tuple(pieces), tuple(slabs))


def _axes(entry: Sequence[object]) -> tuple[int, ...]:
    axes = tuple(whole(axis) for axis in entry)
    if not axes or len(set(axes)) < len(axes) or not all(0 <= a < _MOST_AXES for a in axes):
        raise InputError(f"found {escaped(entry)} where different axes of a tensor belong")
    return axes


def _positions_document(positions: IntArray, tensors: dict[str, Array]) -> dict[str, Any]:
    """An offset and strides if that is all there is to it, else a reference to a tensor."""
    strides = [
        int(np.take(positions, 1, axis).flat[0] - positions.flat[0]) if size > 1 else 0
        for axis, size in enumerate(positions.shape)
    ] if positions.size else []  # fmt: skip
    offset = int(positions.flat[0]) if positions.size else 0
    if positions.size and np.array_equal(positions, _regular(offset, strides, positions.shape)):
        return {"offset": offset, "strides": strides}
    name = f"positions.{sum(key.startswith('positions.') for key in tensors)}"
    tensors[name] = np.ascontiguousarray(positions)
    return {"tensor": name}


def _positions(
    entry: dict[str, Any], shape: tuple[int, ...], tensors: Mapping[str, Array]
) -> IntArray:
    if "tensor" in entry:
        positions = tensors[entry["tensor"]]
        if positions.dtype != np.int64:
            raise InputError(f"{entry['tensor']} has dtype {positions.dtype} instead of int64")
        return positions
    offset, strides = whole(entry["offset"]), [whole(s) for s in entry["strides"]]
    steps = [stride * max(size - 1, 0) for stride, size in zip(strides, shape, strict=True)]
    if offset + sum(min(s, 0) for s in steps) < 0:
        raise InputError("two units of the layout share a position, or one is negative")
    if offset + sum(max(s, 0) for s in steps) > _LARGEST_POSITION:
        raise InputError("a position lies behind the end of any tensor")
    return _regular(offset, strides, shape)


def _regular(offset: int, strides: Sequence[int], shape: tuple[int, ...]) -> IntArray:
    """Positions that advance by a fixed step along each axis."""
    grids = np.ix_(*(np.arange(size, dtype=np.int64) for size in shape))
    total = np.full(shape, offset, dtype=np.int64)
    for grid, stride in zip(grids, strides, strict=True):
        total += grid * stride
    return total


def text(value: object) -> str:
    """A string from a JSON document.

    Args:
        value: of the document.

    Raises:
        InputError: it is no string.
    """
    if type(value) is not str:
        raise InputError(f"found {value!r} where a text belongs")
    return value


def whole(value: object) -> int:
    """An integer from a JSON document; a bool or a float is a fault.

    Args:
        value: of the document.

    Raises:
        InputError: it is no integer.
    """
    if type(value) is not int:
        raise InputError(f"found {value!r} where a whole number belongs")
    return value


def between(value: object, least: int, most: int) -> int:
    """An integer from a JSON document that is no smaller and no larger than what there can be.

    Args:
        value: of the document.
        least: that it may be.
        most: that it may be.

    Raises:
        InputError: it is no integer, or another one.
    """
    found = whole(value)
    if not least <= found <= most:
        raise InputError(f"found {found} where a number from {least} to {most} belongs")
    return found
