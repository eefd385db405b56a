"""Tensors without numbers, whatever a model is told about where they are."""

from __future__ import annotations

import torch
from torch import Tensor


def has_no_data(tensor: Tensor) -> bool:
    """Whether a tensor is on meta; see `fxrebasin.running.devices` for what a model is told.

    Example:
        >>> from fxrebasin.running.devices import OwnDevice
        >>> with OwnDevice(torch.device("cpu")):
        ...     there = torch.empty(3, device="meta")
        ...     there.is_meta, has_no_data(there)
        (False, True)
    """
    with torch._C.DisableTorchFunction():
        return tensor.is_meta
