"""Tensors without numbers, whatever a model is told about where they are."""

from __future__ import annotations

import torch
from torch import Tensor

READS = {
    getattr(Tensor, name): name.strip("_")
    for name in (
        *("numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "storage"),
        *("_typed_storage", "__dlpack__", "__reduce_ex__", "apply_", "map_", "map2_"),
        *("share_memory_", "is_set_to", "__repr__", "__format__"),
    )
}
"""Methods that hand out data or memory of a tensor without an operator."""


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
