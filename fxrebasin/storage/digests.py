"""What tells two states apart: a digest of all their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

INPUTS_KEY = "fxrebasin.inputs"
"""In the `meta` of a graph that `transform` made: the digests of model and reference, by name."""


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
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if not tensor.is_meta:
            found.update(_bytes_of(tensor))
    return found.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.resolve_conj().resolve_neg().to_dense().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
