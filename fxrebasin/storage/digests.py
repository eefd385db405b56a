"""What tells two states apart: a digest of all their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

INPUTS_KEY = "fxrebasin.inputs"
"""In the `meta` of a graph that `transform` made: the digests of model and reference, by name."""


_KIND = ":"
_OF_ONNX = "onnx"


def onnx_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of what an ONNX file stores, which is told from that of a module.

    Args:
        tensors: by their names in the file.

    Example:
        >>> onnx_digest({"a": torch.ones(2)}) == "onnx:" + state_digest({"a": torch.ones(2)})
        True
    """
    return f"{_OF_ONNX}{_KIND}{state_digest(tensors)}"


def same_state(kept: str | None, found: str) -> bool | None:
    """Whether two digests are of one state.

    Args:
        kept: of an earlier one; None if it is not known.
        found: of another.

    Returns:
        None if nothing is known, or one is of a file and the other of a module: their names and
        numbers are other ones.

    Example:
        >>> same_state("1f", "1f"), same_state("1f", "2e"), same_state("onnx:1f", "1f")
        (True, False, None)
    """
    if kept is None or kept.rpartition(_KIND)[0] != found.rpartition(_KIND)[0]:
        return None
    return kept == found


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of names, dtypes, shapes and bits, whatever the order of the names.

    Args:
        state: tensors by name.

    Example:
        >>> one, other = torch.ones(2), torch.zeros(2)
        >>> state_digest({"a": one, "b": other}) == state_digest({"b": other, "a": one})
        True
        >>> state_digest({"a": one}) == state_digest({"a": other})
        False
    """
    return joint_digest(
        tensor_digest(Described(name, tensor.dtype, tuple(tensor.shape), (tensor,)))
        for name in sorted(state)
        for tensor in [state[name]]
    )


@dataclass(frozen=True)
class Described:
    """A tensor that is at hand in parts.

    Args:
        name: of it.
        dtype: of it.
        shape: of it.
        parts: its rows, one after the other; nothing is known of those on the meta device.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Iterable[torch.Tensor]


def tensor_digest(item: Described) -> str:
    """The digest of a tensor that is looked at a part at a time.

    Args:
        item: the tensor.
    """
    found = hashlib.sha256(f"{item.name}\0{item.dtype}\0{item.shape}\0".encode())
    for part in item.parts:
        if not part.is_meta:
            found.update(_bytes_of(part.detach()))
    return found.hexdigest()


def joint_digest(digests: Iterable[str]) -> str:
    """The digest of a state, from those of its tensors: several processes may look at these.

    Args:
        digests: in the order of the names.
    """
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.resolve_conj().resolve_neg().to_dense().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
