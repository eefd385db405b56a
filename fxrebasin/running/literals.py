"""Literals that become tensors inside torch's C++, where no dispatch mode sees their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


def with_literals(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """A call of torch that keeps the data of its literals, also where tensors have none.

    `torch.tensor([0, 2], device=x.device)` and the list in `x[:, [0, 2]]` are made on the CPU.

    Args:
        func: what is called.
        args: its arguments.
        kwargs: by name.
    """
    options = dict(kwargs or {})
    if func in _MAKERS and _is_meta(options.get("device")):
        options["device"] = "cpu"
    elif func is Tensor.new_tensor and args[0].is_meta:
        options = {"dtype": args[0].dtype, **options, "device": "cpu"}
        return torch.tensor, args[1:], options
    elif func in (Tensor.__getitem__, Tensor.__setitem__):
        args = (args[0], _with_tensors(args[1]), *args[2:])
    return func, args, options


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _with_tensors(index: Any) -> Any:
    """An index whose lists are tensors."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(item) for item in index)
    return torch.tensor(index) if isinstance(index, list) and index else index
