"""The file format of a permutation: a safetensors file that says what it is.

Tensors `array.<class>` hold the permutations. The metadata holds the format's name and version, and
one JSON document with the classes, the layout, the constants that were relied on, and the outputs
and buffers that were chosen (files of older releases lack the last two). Positions are written as
an offset and strides where they are regular, otherwise as a tensor `positions.<number>`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fxrebasin.choices import FoundWith
from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass, Piece, Slot
from fxrebasin.reliance import Reliance, Relied
from fxrebasin.storage.files import publish
from fxrebasin.storage.safetensors_header import settled

FORMAT = "fxrebasin.permutation"
VERSION = "1"

# A damaged file must not ask for all the memory there is.
_MOST_POSITIONS = 2**31

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
    classes, arrays, layout, relies_on, found_with = contents
    tensors = {f"array.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    document = {
        "classes": [_class_document(c) for c in classes],
        "layout": {n: [_group_document(g, tensors) for g in gs] for n, gs in layout.items()},
        "relies_on": {
            name: {"digest": item.digest, "uniform": item.uniform}
            for name, item in relies_on.items()
        },
        "found_with": asdict(found_with),
    }
    metadata = {"format": FORMAT, "version": VERSION, "document": json.dumps(document)}
    return settled(safetensors.numpy.save(tensors, metadata))


def read_permutation(path: Path) -> Contents:
    """Read and check a certificate. Call it inside `naming`, which words what is wrong.

    Args:
        path: of the file.

    Returns:
        What it holds.
    """
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise InputError("it is a safetensors file, but not a permutation that was saved here")
        if metadata.get("version") != VERSION:
            raise InputError(
                f"it has version {metadata.get('version')}; this release reads version {VERSION}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    document = json.loads(metadata["document"])
    classes = tuple(_class(entry) for entry in document["classes"])
    layout = {
        name: tuple(_group(group, tensors) for group in groups)
        for name, groups in document["layout"].items()
    }
    prefix = "array."
    arrays = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    relies_on = {
        str(name): _reliance(entry) for name, entry in document.get("relies_on", {}).items()
    }
    found_with = _found_with(document["found_with"]) if "found_with" in document else FoundWith()
    return classes, arrays, layout, relies_on, found_with


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn any fault of a file into a `CheckpointError` that names the file.

    Args:
        path: of the file.

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
        raise CheckpointError(f"{path} holds no usable permutation: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds a damaged permutation: {type(error).__name__} {error}"
        ) from error


def _reliance(entry: dict[str, Any]) -> Reliance:
    axes = entry["uniform"]
    if type(entry["digest"]) is not str:
        raise InputError(f"found {entry['digest']!r} where a digest belongs")
    return Reliance(entry["digest"], None if axes is None else tuple(map(_whole, axes)))


def _found_with(entry: dict[str, Any]) -> FoundWith:
    outputs, function = entry["outputs"], entry["function"]
    chosen = None if outputs is None else tuple(map(_text, outputs))
    if chosen == () or (chosen is not None and function is not None):
        raise InputError(f"found {outputs!r} and {function!r} where chosen outputs belong")
    buffers = tuple(map(_text, entry["state_buffers"]))
    return FoundWith(buffers, chosen, None if function is None else _text(function))


def _class_document(c: PermutationClass) -> dict[str, Any]:
    return {
        "name": c.name,
        "size": c.size,
        "within": list(c.within),
        "count": c.count,
        "axes": [list(axis) for axis in c.axes],
    }


def _class(entry: dict[str, Any]) -> PermutationClass:
    return PermutationClass(
        str(entry["name"]),
        _whole(entry["size"]),
        tuple(str(name) for name in entry["within"]),
        _whole(entry["count"]),
        tuple((str(name), _whole(axis)) for name, axis in entry["axes"]),
    )


def _group_document(group: AxisGroup, tensors: dict[str, IntArray]) -> dict[str, Any]:
    return {
        "axes": list(group.axes),
        "pieces": [
            {
                "slots": [[s.class_name, s.size, list(s.within)] for s in piece.slots],
                "positions": _positions_document(piece.positions, tensors),
            }
            for piece in group.pieces
        ],
    }


def _group(entry: dict[str, Any], tensors: Mapping[str, IntArray]) -> AxisGroup:
    """One axis group, whose positions must be distinct."""
    pieces = []
    for part in entry["pieces"]:
        slots = tuple(
            Slot(None if name is None else str(name), _whole(size), tuple(map(_whole, within)))
            for name, size, within in part["slots"]
        )
        shape = tuple(slot.size for slot in slots)
        if math.prod(shape) > _MOST_POSITIONS:
            raise InputError(f"a piece of shape {shape} is larger than any tensor's axes")
        pieces.append(Piece(slots, _positions(part["positions"], shape, tensors)))
    everything = np.concatenate([p.positions.ravel() for p in pieces] or [np.zeros(0, np.int64)])
    if everything.size and (everything.min() < 0 or len(np.unique(everything)) < everything.size):
        raise InputError("two units of the layout share a position, or one is negative")
    return AxisGroup(tuple(_whole(axis) for axis in entry["axes"]), tuple(pieces))


def _positions_document(positions: IntArray, tensors: dict[str, IntArray]) -> dict[str, Any]:
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
    entry: dict[str, Any], shape: tuple[int, ...], tensors: Mapping[str, IntArray]
) -> IntArray:
    if "tensor" in entry:
        positions = tensors[entry["tensor"]]
        if positions.dtype != np.int64:
            raise InputError(f"{entry['tensor']} has dtype {positions.dtype} instead of int64")
        return positions
    return _regular(_whole(entry["offset"]), [_whole(s) for s in entry["strides"]], shape)


def _regular(offset: int, strides: Sequence[int], shape: tuple[int, ...]) -> IntArray:
    """Positions that advance by a fixed step along each axis."""
    grids = np.ix_(*(np.arange(size, dtype=np.int64) for size in shape))
    total = np.full(shape, offset, dtype=np.int64)
    for grid, stride in zip(grids, strides, strict=True):
        total += grid * stride
    return total


def _text(value: object) -> str:
    """A string from a JSON document."""
    if type(value) is not str:
        raise InputError(f"found {value!r} where a text belongs")
    return value


def _whole(value: object) -> int:
    """An integer from a JSON document; a bool or a float is a fault."""
    if type(value) is not int:
        raise InputError(f"found {value!r} where a whole number belongs")
    return value
