"""Initializers that are a model's state: under its names, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from fxrebasin.errors import ExportError
from fxrebasin.exporters.onnx.wire import Extent, Stored, stored_initializers
from fxrebasin.wording import listed

_CHUNK = 1 << 20  # bytes that are compared at once: what a processor's cache holds
_SHOWN = 3  # names in a note


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by all their names, as numbers that a file can hold.

    Complex numbers are pairs of real ones, as in the graphs that torch's exporter makes.

    Example:
        >>> list(state_of(nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    named = chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {name: _as_real(tensor.detach()) for name, tensor in named}


def state_bytes(model: nn.Module) -> int:
    """How much memory parameters and buffers take, tied ones once.

    Example:
        >>> state_bytes(nn.Linear(2, 1))
        12
    """
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def add_unread(graph: ir.Graph, model: nn.Module, names: Mapping[str, str]) -> None:
    """Add the parameters that no node reads, so that the file has all.

    A buffer that no node reads (a count of batches) says nothing about the function, and
    onnxruntime warns of what is not read.

    Args:
        graph: its initializers have the names of the file.
        model: what it was made of.
        names: of the file, by those of the state.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names[name] not in graph.initializers:
            tensor = TorchTensor(_as_real(parameter.detach()), name=names[name])
            value = ir.Value(
                name=names[name],
                shape=ir.Shape(tensor.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            graph.register_initializer(value)


def check_state(path: Path, model: nn.Module, names: Mapping[str, str]) -> None:
    """Compare the initializers of a file with the state of a model, bit for bit.

    Args:
        path: an ONNX file, with its data.
        model: what it was made of.
        names: of the file, by those of the state.

    Raises:
        ExportError: a parameter is missing, or an initializer has other bits than the state.
    """
    other, missing = _compared(path, model, names)
    if other:
        raise ExportError(
            f"{listed(other, _SHOWN)} of the file have other values than in the model; please "
            "report this"
        )
    if missing:
        raise ExportError(f"the file lacks {listed(missing, _SHOWN)}; please report this")


def folding_notes(path: Path, model: nn.Module, names: Mapping[str, str]) -> Iterator[str]:
    """What an optimized file has no more of a model's state, in words.

    Args:
        path: an ONNX file, with its data.
        model: what it was made of.
        names: of the file, by those of the state.
    """
    other, missing = _compared(path, model, names)
    if missing:
        yield f"folded: the file lacks {_parameters(missing)}"
    if other:
        yield f"folded: the file has other values for {_parameters(other)}"


def _compared(
    path: Path, model: nn.Module, names: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Names of tensors of the state that a file has with other bits, and of parameters it lacks."""
    state = state_of(model)
    stored = {one.header.name: one for one in stored_initializers(path)}
    kept = [name for name in state if names[name] in stored]
    other = [name for name in kept if not _same_bits(stored[names[name]], state[name])]
    parameters = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return other, [name for name in parameters if names[name] not in stored]


def _parameters(names: list[str]) -> str:
    kind = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names)} {kind} of the state ({listed(names, _SHOWN)})"


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _same_bits(stored: Stored, tensor: torch.Tensor) -> bool:
    shape, kind = tuple(stored.header.dims), stored.header.data_type
    expected = TorchTensor(tensor)
    if (shape, kind) != (tuple(expected.shape.numpy()), expected.dtype.value):
        return False
    if stored.place is None:
        return tensor.numel() == 0
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return stored.place.size == flat.numel() and all(
        bytes(flat[start : start + len(chunk)].numpy()) == chunk
        for start, chunk in _chunks(stored.place)
    )


def _chunks(place: Extent) -> Iterator[tuple[int, bytes]]:
    """Pieces of the data, with their distance from its begin."""
    with place.path.open("rb") as file:
        file.seek(place.offset)
        for start in range(0, place.size, _CHUNK):
            yield start, file.read(min(_CHUNK, place.size - start))
