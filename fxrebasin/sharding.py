"""Tensors of which each process has a part (DTensor, as FSDP2 makes them): whole, and cut again.

Whoever has such tensors has imported the library for them; nothing is imported otherwise.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_LIBRARY = "torch.distributed.tensor"


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is one of which each process has a part, or a copy.

    Args:
        tensor: of any type.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    library: Any = sys.modules.get(_LIBRARY)
    return library is not None and isinstance(tensor, library.DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, without gradient; all processes that have parts of it have to ask for it.

    Args:
        tensor: whatever its type.

    Returns:
        The tensor itself, detached, if it is not sharded.
    """
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor.detach()
    found: torch.Tensor = sharded.full_tensor()
    return found


def cut_like(tensor: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """A tensor that all processes have, cut as another one is; nothing is sent for it.

    Args:
        tensor: whole, the same in all processes.
        sharded: tells how it is cut, and over which processes.
    """
    library: Any = sys.modules[_LIBRARY]
    like: Any = sharded
    found: torch.Tensor = library.distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    )
    return found


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part that this process has; the tensor itself if it is not sharded.

    Args:
        tensor: whatever its type.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor.detach()
    found: torch.Tensor = sharded.to_local()
    return found
