"""What a model asks torch for before any operator runs: literals, and the data of tensors.

The data of constants that a model makes are kept while its activations have none, and reads of data
that no dispatch mode sees are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.running.devices import OwnDevice

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


_READS = {
    getattr(Tensor, name): name.strip("_")
    for name in (
        *("numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "storage"),
        *("_typed_storage", "__dlpack__", "__reduce_ex__", "apply_", "map_", "map2_"),
        *("share_memory_", "is_set_to"),
    )
}
"""Methods that hand out data or memory of a tensor without an operator."""


class FunctionWatch(OwnDevice):
    """Makes literals on the CPU that the model wants where its activations are: on meta.

    `torch.tensor([0, 2], device=x.device)` and the list in `x[:, [0, 2]]` become tensors inside
    torch's C++, where no dispatch mode sees their data.
    """

    def __init__(self, device: torch.device, on_read: Callable[[Tensor, str], None]) -> None:
        """Watch the functions of torch that are called.

        Args:
            device: where the model is told that its activations are.
            on_read: called with a tensor whose data Python is about to get, and by which method.
        """
        super().__init__(device)
        self._on_read = on_read

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _MAKERS and _is_meta(options.get("device")):
            options["device"] = "cpu"
        elif func is Tensor.new_tensor and args[0].is_meta:
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **options, "device": "cpu"})
        elif func in _READS:
            self._on_read(args[0], _READS[func])
        elif func is Tensor.__deepcopy__:
            return args[1].setdefault(id(args[0]), args[0].clone())
        elif func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _with_tensors(args[1]), *args[2:])
        return super().__torch_function__(func, types, args, options)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _with_tensors(index: Any) -> Any:
    """An index whose lists are tensors."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(item) for item in index)
    return torch.tensor(index) if isinstance(index, list) and index else index
