"""Example inputs for a graph, of what it says about them and of what reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.dtypes import UnknownTypeError, dtype_of
from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.tensors import from_array


@dataclass(frozen=True)
class _Sizes:
    """Sizes of dimensions that have a name only.

    Args:
        any: of one of which nothing is known.
        rows: of a batch.
        image: of the sides of images.
        sides: of those sides of which the file says for which sizes it is right, by their names.
            Windows and patches have to fit a side; a graph may run where they do not, and mix what
            it keeps apart elsewhere.
    """

    any: int
    rows: int
    image: int
    sides: Mapping[str, int] = field(default_factory=dict)


_SIZES = (
    _Sizes(7, 2, 64),
    _Sizes(5, 3, 96),
    _Sizes(8, 4, 224),
    _Sizes(16, 1, 128),
    _Sizes(1, 1, 32),
    _Sizes(480, 2, 384),
    _Sizes(16000, 1, 512),
)
"""In the order in which they are tried."""

_USUAL = 2
_LARGEST_SIDE = 4096

_IMAGE_NDIM = 4
_PARTS = re.compile(r"\s*([+*-])\s*")
_FEW_TOKENS = 8
_ANGLES: Mapping[tuple[str, str, int], int] = {
    ("com.microsoft", "RotaryEmbedding", 1): 2,
    ("com.microsoft", "GroupQueryAttention", 9): 7,
    ("", "RotaryEmbedding", 3): 1,
}
"""Inputs that are positions, by operator, and which input is the table of these."""
_PASSED_ON = frozenset(
    {
        *("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Where", "Expand"),
    }
)


@dataclass(frozen=True, eq=False)
class Port:
    """One input of a graph.

    Args:
        name: of it.
        dtype: of its elements.
        dims: sizes, or names of sizes; empty names where nothing is said.
    """

    name: str
    dtype: torch.dtype
    dims: tuple[int | str, ...]


def ports_of(parsed: Parsed) -> tuple[Port, ...]:
    """The inputs of a graph.

    Raises:
        InputError: an input is no tensor, or says nothing about its shape.
    """
    found = []
    for name, kind in parsed.types.items():
        if not kind.HasField("tensor_type"):
            raise InputError(f"the input {name!r} is no tensor; only tensors are run")
        tensor = kind.tensor_type
        if not tensor.HasField("shape"):
            raise InputError(
                f"the file does not say which shape its input {name!r} has; pass example_inputs"
            )
        dims = tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param)
            for dim in tensor.shape.dim
        )
        try:
            found.append(Port(name, dtype_of(tensor.elem_type), dims))
        except UnknownTypeError as error:
            raise UnknownTypeError(f"the input {name!r} cannot be computed: {error}") from None
    return tuple(found)


def given_inputs(parsed: Parsed, example: Any) -> dict[str, Tensor]:
    """Inputs that the user gave: by name, or in the order of the file.

    Args:
        parsed: the model.
        example: a tensor or array, several in a tuple or list, or a mapping of them by name.

    Raises:
        InputError: they do not fit the inputs of the file.
    """
    names = list(parsed.types)
    if not isinstance(example, Mapping):
        values = list(example) if isinstance(example, list | tuple) else [example]
        if len(values) != len(names):
            raise InputError(
                f"{len(values)} example inputs were given, and the file has {len(names)}: "
                f"{', '.join(names)}"
            )
        example = dict(zip(names, values, strict=True))
    if set(example) != set(names):
        raise InputError(
            f"example inputs are {', '.join(map(str, example)) or 'none'}, and the inputs of the "
            f"file {', '.join(names) or 'none'}"
        )
    return {name: _as_tensor(name, example[name]) for name in names}


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return from_array(np.asarray(value))
    except TypeError as error:
        raise InputError(f"the example input {name!r} is no tensor: {error}") from None


def drawn_inputs(parsed: Parsed, attempt: int = 0) -> dict[str, Tensor]:
    """Inputs with sizes for all dimensions that have a name only.

    Tokens are drawn from as many as the tables that they are looked up in have rows; masks let
    everything pass, positions count up, and images have as many channels as the first layer.

    Args:
        parsed: the model.
        attempt: which sizes are tried; see `attempts`.

    Raises:
        InputError: the file does not say enough about an input.
    """
    ports = ports_of(parsed)
    fixed = dict(_fixed_by_weights(parsed, ports))
    tried = _sizes(parsed, ports)[attempt]
    named = _named_sizes(ports, tried)
    generator = torch.Generator().manual_seed(attempt)
    found = {}
    for port in ports:
        sizes = [
            fixed.get((port.name, at)) or _size(dim, at, named, tried)
            for at, dim in enumerate(port.dims)
        ]
        rows = _rows_looked_up(parsed, port.name)
        found[port.name] = _values(port, sizes, rows, generator)
    return found


@dataclass(frozen=True)
class Attempts:
    """Numbers of choices of sizes.

    Args:
        usual: small ones.
        said: of which the file says that it is right for them.
        others: the rest.
    """

    usual: Sequence[int]
    said: Sequence[int]
    others: Sequence[int]

    def __iter__(self) -> Iterator[int]:
        """All of them, in the order in which they are tried."""
        return chain(self.usual, self.said, self.others)


def attempts(parsed: Parsed) -> Attempts:
    """Which choices of sizes there are; one if all are fixed."""
    ports = ports_of(parsed)
    if not any(isinstance(dim, str) for port in ports for dim in port.dims):
        return Attempts(range(1), (), ())
    rest = _USUAL + len(list(_proved(parsed, ports)))
    return Attempts(range(_USUAL), range(_USUAL, rest), range(rest, len(_sizes(parsed, ports))))


def _sizes(parsed: Parsed, ports: Sequence[Port]) -> list[_Sizes]:
    """Sizes of dimensions that have a name only, in the order in which they are tried."""
    lengths = dict.fromkeys(length for port in ports for length in _sides(parsed, port))
    fitting = (_Sizes(7, rows, length) for length in lengths for rows in (2, 3))
    return [*_SIZES[:_USUAL], *_proved(parsed, ports), *_SIZES[_USUAL:], *fitting]


def _proved(parsed: Parsed, ports: Sequence[Port]) -> Iterator[_Sizes]:
    """Those of which the file says for which sides of images it is right."""
    places = _places(ports)
    names = [name for name, met in places.items() if _is_side(name, met, _are_images(ports))]
    said = [tuple(one[n] for n in names) for one in parsed.proved if one.keys() >= set(names)]
    distinct = [one for one in dict.fromkeys(said) if one and max(one) <= _LARGEST_SIDE]
    for usual, lengths in zip(_SIZES, distinct, strict=False):
        yield replace(usual, sides=dict(zip(names, lengths, strict=True)))


def _sides(parsed: Parsed, port: Port) -> Iterator[int]:
    """Sizes of an image whose square patches are as many as a table of positions has rows.

    Up to two more rows may be for tokens that are no patches.
    """
    if len(port.dims) != _IMAGE_NDIM or not port.dtype.is_floating_point:
        return
    for owner, step, at in _readers(parsed.graph, port.name):
        weight = _stored(parsed, owner, step.inputs[1]) if len(step.inputs) > 1 else None
        if step.kind != "Conv" or at != 0 or weight is None or weight.ndim != _IMAGE_NDIM:
            continue
        width, _, *patch = weight.shape
        if list(step.attributes.get("strides", ())) != patch or patch[0] != patch[1]:
            continue
        tables = [t for t in parsed.tensors.values() if t.ndim in (2, 3) and t.shape[-1] == width]
        for rows in dict.fromkeys(int(table.shape[-2]) for table in tables):
            sides = [math.isqrt(max(rows - more, 0)) for more in range(3)]
            yield from (
                patch[0] * n for more, n in enumerate(sides) if n > 1 and n * n + more == rows
            )


def _size(dim: int | str, at: int, named: Mapping[str, int], sizes: _Sizes) -> int:
    """The size of a dimension; of a sum of names, the sum of their sizes."""
    if isinstance(dim, int):
        return dim
    if not dim.strip():
        return sizes.any if at else sizes.rows
    first, *rest = _PARTS.split(dim.strip())
    total = _single(first, named)
    for sign, part in zip(rest[::2], rest[1::2], strict=False):
        other = _single(part, named)
        total = total * other if sign == "*" else total + other if sign == "+" else total - other
    return max(total, 1)


def _single(name: str, named: Mapping[str, int]) -> int:
    return int(name) if name.isdigit() else named[name]


_Places: TypeAlias = Sequence[tuple[Port, int]]


def _named_sizes(ports: Sequence[Port], sizes: _Sizes) -> dict[str, int]:
    """A size for each name, which is the same wherever the name is met."""
    images = _are_images(ports)
    return {name: _size_of_name(name, met, images, sizes) for name, met in _places(ports).items()}


def _places(ports: Sequence[Port]) -> dict[str, _Places]:
    """Inputs, and at which of their axes they have a size, by its name."""
    places: dict[str, list[tuple[Port, int]]] = {}
    for port in ports:
        for at, dim in enumerate(port.dims):
            for part in _PARTS.split(dim.strip())[::2] if isinstance(dim, str) else ():
                places.setdefault(part, []).append((port, at))
    return dict(places)


def _are_images(ports: Sequence[Port]) -> bool:
    """Whether no input is one of tokens."""
    return all(port.dtype.is_floating_point for port in ports)


def _size_of_name(name: str, met: _Places, images: bool, sizes: _Sizes) -> int:
    """The size of one name.

    Args:
        name: of the size.
        met: inputs, and at which of their axes they have it.
        images: whether no input is one of tokens.
        sizes: those that are tried.
    """
    lowered = name.lower()
    if _is_batch(lowered):
        return sizes.rows
    if _is_side(name, met, images):
        return sizes.sides.get(name, sizes.image)
    if "past" in lowered or "cache" in lowered:
        return max(sizes.any - 4, 1)
    if "encoder" in lowered:
        return max(sizes.any - 2, 1)
    return sizes.rows if all(at == 0 for _, at in met) else sizes.any


def _is_batch(name: str) -> bool:
    return "batch" in name or name in ("n", "bs")


def _is_side(name: str, met: _Places, images: bool) -> bool:
    """Whether a size is that of a side of an image."""
    lowered = name.lower()
    if _is_batch(lowered):
        return False
    if any(word in lowered for word in ("height", "width", "image")) or lowered in ("h", "w"):
        return True
    return images and all(len(port.dims) == _IMAGE_NDIM and at >= 2 for port, at in met)


def _readers(graph: Graph, name: str) -> Iterator[tuple[Graph, Step, int]]:
    """Steps that read a value, and at which place; also through what only passes it on."""
    pending, seen = [name], {name}
    while pending:
        current = pending.pop()
        for owner, step in graph.all_steps():
            for at, item in enumerate(step.inputs):
                if item == current:
                    yield owner, step, at
                    passed = at == 0 or step.kind == "Where"
                    if step.kind in _PASSED_ON and passed and step.outputs[0] not in seen:
                        seen.add(step.outputs[0])
                        pending.append(step.outputs[0])


def _stored(parsed: Parsed, owner: Graph, name: str) -> Tensor | None:
    full = owner.tensors.get(name) or parsed.graph.tensors.get(name)
    return None if full is None else parsed.tensors[full]


def _fixed_by_weights(
    parsed: Parsed, ports: Sequence[Port]
) -> Iterator[tuple[tuple[str, int], int]]:
    """Sizes that have a name in the file, and that the first layer leaves no choice in."""
    for port in ports:
        if not port.dtype.is_floating_point or not port.dims:
            continue
        for owner, step, at in _readers(parsed.graph, port.name):
            weight = _stored(parsed, owner, step.inputs[1]) if len(step.inputs) > 1 else None
            if at != 0 or weight is None:
                continue
            last = len(port.dims) - 1
            if step.kind.endswith("Conv") and last >= 2 and isinstance(port.dims[1], str):
                yield (port.name, 1), weight.shape[1] * int(step.attributes.get("group", 1))
            elif step.kind in ("MatMul", "Gemm") and isinstance(port.dims[last], str):
                yield (port.name, last), weight.shape[1 if step.attributes.get("transB") else 0]


def _rows_looked_up(parsed: Parsed, name: str) -> int | None:
    """The rows of the smallest table in which an input is looked up."""
    found = []
    for owner, step, at in _readers(parsed.graph, name):
        table = _stored(parsed, owner, step.inputs[0])
        if step.kind in ("Gather", "GatherElements") and at == 1 and table is not None:
            found.append(table.shape[int(step.attributes.get("axis", 0))])
        if step.kind == "EmbedLayerNormalization" and at < 2:
            words = _stored(parsed, owner, step.inputs[2 if at == 0 else 4])
            found += [] if words is None else [words.shape[0]]
        angles = _ANGLES.get((step.domain, step.kind, at))
        if angles is not None and angles < len(step.inputs):
            rows = _stored(parsed, owner, step.inputs[angles])
            found += [] if rows is None else [rows.shape[0]]
    return min(found, default=None)


def _values(
    port: Port, sizes: Sequence[int], rows: int | None, generator: torch.Generator
) -> Tensor:
    lowered = port.name.lower()
    if port.dtype.is_floating_point:
        return torch.randn(tuple(sizes), generator=generator).to(port.dtype)
    if port.dtype is torch.bool or "mask" in lowered:
        return torch.ones(tuple(sizes), dtype=port.dtype)
    if "position" in lowered:
        return torch.arange(sizes[-1] if sizes else 1, dtype=port.dtype).expand(sizes).contiguous()
    low, high = (0, _FEW_TOKENS) if rows is None else (min(1, rows - 1), rows)
    return torch.randint(low, high, tuple(sizes), generator=generator).to(port.dtype)
