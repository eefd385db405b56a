"""What an ONNX file stores, held against the state of the model that it should compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor

from fxrebasin.exporters.onnx.wire import Stored, stored_initializers
from fxrebasin.importers.onnx.tensors import bytes_of
from fxrebasin.wording import listed

_SHOWN = 3  # names in a note
_Bits = npt.NDArray[np.unsignedinteger]


class Relation(Enum):
    """How the numbers of a stored tensor are related to those of a state."""

    SAME = "bit for bit those of the model"
    REORDERED = "the model's numbers in another order"
    OTHER = "other numbers, as folding a normalisation makes them"
    EDITED = "the model's numbers but for a few"
    ABSENT = "not in the file under their names, nor with their numbers"


@dataclass
class Comparison:
    """The tensors of a state by what a file has of them.

    Attributes:
        found: names by relation.
        edited: how many numbers of how many differ, by name.
    """

    found: dict[Relation, list[str]] = field(default_factory=dict)
    edited: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found, in one sentence."""
        parts = [
            f"{len(names)} {kind.value}"
            + ("" if kind is Relation.SAME else f" ({listed(names, _SHOWN)})")
            for kind in Relation
            if (names := self.found.get(kind))
        ]
        return (f"tensors of the state in the file: {', '.join(parts)}",) if parts else ()

    @property
    def faults(self) -> tuple[str, ...]:
        """Tensors that are the model's but for a few numbers: neither order nor folding does so."""
        return tuple(
            f"{name} in the file differs from the model's in {differing} of {total} numbers"
            for name, (differing, total) in self.edited.items()
        )


def compare_state(path: Path, state: Mapping[str, Tensor]) -> Comparison:
    """Compare the initializers of a file with a state, bit for bit, one tensor at a time.

    A tensor is looked for under its name, and if that is not there among those of other names that
    have its shape or the transposed one. A file of a rebased model has the numbers in another
    order, and one that was optimised has others where a normalisation was folded into weights;
    whether the function is the same only running it shows. But a tensor in which most numbers are
    the model's and a few are not is damaged, or was edited.

    Args:
        path: of an ONNX file.
        state: tensors by name.
    """
    stored = {one.header.name: one for one in stored_initializers(path)}
    others = [one for name, one in stored.items() if name not in state]
    comparison = Comparison()
    for name, tensor in state.items():
        candidates = [stored[name]] if name in stored else _alike(others, tensor)
        relation, differing = _best(candidates, tensor)
        if name in stored and relation is Relation.ABSENT:
            relation = Relation.OTHER
        comparison.found.setdefault(relation, []).append(name)
        if relation is Relation.EDITED:
            comparison.edited[name] = differing, tensor.numel()
    return comparison


def _alike(stored: list[Stored], tensor: Tensor) -> list[Stored]:
    """Those that may be a tensor under another name; one number says nothing about where it is."""
    if tensor.numel() < 2:
        return []
    shapes = (tuple(tensor.shape), tuple(tensor.shape[::-1]))
    return [one for one in stored if tuple(one.header.dims) in shapes]


def _best(candidates: list[Stored], tensor: Tensor) -> tuple[Relation, int]:
    """The closest relation of a tensor to any of these, and how many numbers differ."""
    wanted = _bits(bytes_of(tensor.detach().cpu().contiguous()), tensor.element_size())
    best = Relation.ABSENT, tensor.numel()
    for one in candidates:
        found = _relation(wanted, tuple(tensor.shape), one)
        if found[1] < best[1] or (found[0] is Relation.SAME and best[0] is not Relation.SAME):
            best = found
    return best


def _relation(wanted: _Bits, shape: tuple[int, ...], one: Stored) -> tuple[Relation, int]:
    data = _data(one)
    if len(data) != wanted.nbytes:
        return Relation.ABSENT, wanted.size
    found = _bits(data, wanted.itemsize)
    if any(np.array_equal(wanted, order) for order in _orders(found, shape, one)):
        return Relation.SAME, 0
    differing = wanted.size - _common(wanted, found)
    if not differing:
        return Relation.REORDERED, 0
    return (Relation.EDITED if 2 * differing <= wanted.size else Relation.ABSENT), differing


def _orders(found: _Bits, shape: tuple[int, ...], one: Stored) -> Iterator[_Bits]:
    """As it is stored, and transposed."""
    own = tuple(one.header.dims)
    if own == shape:
        yield found
    if len(shape) == 2 and own == shape[::-1]:
        yield found.reshape(own).T.ravel()


def _common(left: _Bits, right: _Bits) -> int:
    """How many numbers two arrays share, each as often as it is in both."""
    (ours, our_counts), (theirs, their_counts) = (
        np.unique(bits, return_counts=True) for bits in (left, right)
    )
    _, here, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    return int(np.minimum(our_counts[here], their_counts[there]).sum())


def _bits(data: bytes, size: int) -> _Bits:
    """Numbers of 1, 2, 4 or 8 bytes as unsigned ones; complex numbers as pairs."""
    return np.frombuffer(data, f"u{min(size, 8)}")


def _data(one: Stored) -> bytes:
    """The bytes of a stored tensor, little-endian."""
    if one.place is None:
        array = onnx.numpy_helper.to_array(one.header)
        return np.ascontiguousarray(array).tobytes()
    with one.place.path.open("rb") as file:
        file.seek(one.place.offset)
        return file.read(one.place.size)
