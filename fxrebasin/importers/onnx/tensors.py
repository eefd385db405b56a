"""Tensors of a file as torch tensors, bit for bit, wherever and however they are stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnx import SparseTensorProto, TensorProto, numpy_helper

from fxrebasin.errors import CheckpointError
from fxrebasin.exporters.onnx.wire import Extent
from fxrebasin.facts import bytes_text
from fxrebasin.importers.onnx.dtypes import UnknownTypeError, dtype_of
from fxrebasin.wording import escaped


def size_of(tensor: TensorProto) -> int:
    """The number of elements that a tensor says it has."""
    return math.prod(tensor.dims)


def is_external(tensor: TensorProto) -> bool:
    """Whether the data are in a file of their own."""
    return tensor.data_location == TensorProto.EXTERNAL


def is_left(tensor: TensorProto) -> bool:
    """Whether the data are in the file of the model only, and were not read with it."""
    return tensor.HasField("raw_data") and not tensor.raw_data and size_of(tensor) > 0


_MOST_DENSE = 2**31
"""Bytes that a sparse tensor may take with all its zeros; no message of protobuf takes more."""


def to_torch(
    tensor: TensorProto,
    folder: Path | None = None,
    *,
    mapped: bool = False,
    place: Extent | None = None,
) -> torch.Tensor:
    """The data of a tensor.

    Args:
        tensor: of a file.
        folder: where that file is, for data that are in files of their own.
        mapped: whether these files are mapped into memory, which only those may be that nobody
            else knows of: to look at what was cut off meanwhile ends the process.
        place: where in the file of the model the data are, if they were not read with it.

    Raises:
        UnknownTypeError: torch has no such type.
        CheckpointError: there are not as many bytes as the shape needs, or the file with the data
            is missing or lies outside the folder.

    Example:
        >>> to_torch(numpy_helper.from_array(np.arange(3)))
        tensor([0, 1, 2])
    """
    try:
        dtype = dtype_of(tensor.data_type)
    except UnknownTypeError as error:
        raise UnknownTypeError(f"the tensor {tensor.name!r} cannot be computed: {error}") from None
    if place is not None:
        return _read(tensor, dtype, place, mapped)
    if is_external(tensor):
        return _external(tensor, dtype, folder, mapped)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"the data of {tensor.name!r} do not fit its shape: {error}"
        ) from None
    return from_array(array)


def from_array(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """An array as a tensor of its own.

    Example:
        >>> from_array(np.ones(2, np.float16)).dtype
        torch.float16
    """
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as whole numbers of the same size."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()])


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit, and of one type and shape; nothing is copied."""
    return one.dtype is two.dtype and torch.equal(bits_of(one), bits_of(two))


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The elements in the order and the bytes in which ONNX stores them."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def dense(
    sparse: SparseTensorProto, folder: Path | None = None, *, mapped: bool = False
) -> torch.Tensor:
    """A sparse tensor with all its zeros.

    Args:
        sparse: of a file.
        folder: where that file is.
        mapped: see `to_torch`.

    Raises:
        CheckpointError: its places are not those of its values, lie outside of its shape, or it
            takes more than 2 GiB.
    """
    values = to_torch(sparse.values, folder, mapped=mapped)
    places = to_torch(sparse.indices, folder, mapped=mapped)
    size = math.prod(sparse.dims)
    name = sparse.values.name
    if min(sparse.dims, default=0) < 0 or size * values.itemsize > _MOST_DENSE:
        raise CheckpointError(
            f"the sparse tensor {escaped(name)!r} has the shape {escaped(list(sparse.dims), 100)}, "
            f"which takes more than the {bytes_text(_MOST_DENSE)} that a tensor in an ONNX file "
            "may; the file is damaged"
        )
    _check_places(places, len(values.reshape(-1)), list(sparse.dims), name)
    found = torch.zeros(size, dtype=values.dtype)
    if places.ndim == 2:
        strides = [math.prod(sparse.dims[at + 1 :]) for at in range(len(sparse.dims))]
        places = (places * torch.tensor(strides)).sum(1)
    found[places] = values
    return found.reshape(tuple(sparse.dims))


def _check_places(places: torch.Tensor, count: int, dims: list[int], name: str) -> None:
    """Refuse places that are no numbers, not as many as values, or outside of the shape."""
    forms = ((count,), (count, len(dims)))
    fits = places.dtype is torch.int64 and tuple(places.shape) in forms
    if fits:
        ends = torch.tensor([math.prod(dims)] if places.ndim == 1 else dims)
        fits = bool(((places >= 0) & (places < ends)).all())
    if not fits:
        raise CheckpointError(
            f"the places of the {count} values of the sparse tensor {escaped(name)!r} are not "
            f"{count} places in its shape, {escaped(dims, 100)}; the file is damaged"
        )


def place_of(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length of data that are in a file of their own."""
    entries = {item.key: item.value for item in tensor.external_data}
    try:
        length = int(entries["length"]) if "length" in entries else None
        return entries.get("location", ""), int(entries.get("offset", 0) or 0), length
    except ValueError as error:
        raise CheckpointError(
            f"the data of {tensor.name!r} are said to be at no number: {error}; the file is damaged"
        ) from error


def external_path(tensor: TensorProto, folder: Path | None) -> Path:
    """The file that holds the data of a tensor; it has to be in the folder of the model.

    Links count by where they lead. Those of a Hugging Face cache lead from a snapshot to its
    blobs, which belong to the same model.

    Raises:
        CheckpointError: there is no such file there.
    """
    location = place_of(tensor)[0]
    if folder is None:
        raise CheckpointError(
            f"the data of {tensor.name!r} are in a file of their own, {location!r}, and it is not "
            "known where; pass the path of the model instead of the model."
        )
    outside = CheckpointError(
        f"the data of {tensor.name!r} are said to be at {location!r}, which is not inside the "
        f"folder of the model, {folder}. Put the file there, and name it without its folder."
    )
    relative = Path(location)
    if not location or relative.is_absolute() or ".." in relative.parts:
        raise outside
    path = folder / relative
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}, which holds the data of {tensor.name!r}")
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in _roots(folder)):
        raise outside
    return target


def _roots(folder: Path) -> list[Path]:
    found = [folder.resolve()]
    here = folder.absolute()
    for parent in (here, *here.parents):
        if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
            found.append((parent.parent.parent / "blobs").resolve())
    return found


def _external(
    tensor: TensorProto, dtype: torch.dtype, folder: Path | None, mapped: bool
) -> torch.Tensor:
    """Data that are in a file of their own."""
    path = external_path(tensor, folder)
    location, offset, length = place_of(tensor)
    count = size_of(tensor)
    needed = count * dtype.itemsize
    available = path.stat().st_size - offset
    if (length is not None and length != needed) or needed > available or offset < 0:
        raise CheckpointError(
            f"the data of {tensor.name!r} take {needed} bytes at {offset} of {location!r}, which "
            f"has {max(available, 0)} there"
            + (f" and is said to hold {length} for it" if length is not None else "")
            + "; the file is not complete, or belongs to another model."
        )
    if not count:
        return torch.zeros(tuple(tensor.dims), dtype=dtype)
    return _read(tensor, dtype, Extent(path, offset, needed), mapped)


def _read(tensor: TensorProto, dtype: torch.dtype, place: Extent, mapped: bool) -> torch.Tensor:
    """Data that are at a place of a file."""
    data: npt.NDArray[np.uint8]
    if mapped and not place.offset % dtype.itemsize:
        data = np.memmap(place.path, np.uint8, "c", place.offset, (place.size,))
    else:
        data = np.fromfile(place.path, np.uint8, place.size, offset=place.offset)
    if len(data) != place.size:
        raise CheckpointError(
            f"the data of {tensor.name!r} in {place.path} were cut off while they were read"
        )
    return torch.from_numpy(data).view(dtype).reshape(tuple(tensor.dims))
