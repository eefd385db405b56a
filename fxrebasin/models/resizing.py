"""Inputs like given ones, with other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten


def resized(
    args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Sequence[Mapping[int, int]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs with axes of other sizes; what is longer repeats what was given.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        sizes: of axes, for each tensor among these in order; other axes stay.

    Example:
        >>> resized((torch.tensor([3, 1]),), {}, [{0: 4}])
        ((tensor([3, 3, 1, 1]),), {})
    """
    leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
    places = iter(sizes)
    made = [
        _resized(leaf, next(places)) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
    ]
    own_args, own_kwargs = tree_unflatten(made, structure)
    return own_args, own_kwargs


def _resized(tensor: torch.Tensor, sizes: Mapping[int, int]) -> torch.Tensor:
    for axis, size in sizes.items():
        before = tensor.shape[axis]
        if size != before:
            picked = torch.arange(size, device=tensor.device) * before // size
            tensor = tensor.index_select(axis, picked)
    return tensor
