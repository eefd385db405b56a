"""What a model is told of the device of its activations while these are on meta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxrebasin.running.contents import tensors_reached


def _attribute(name: str) -> Any:
    return getattr(Tensor, name).__get__


_QUESTIONS: dict[Any, Callable[[Tensor], Any]] = {
    _attribute("device"): lambda tensor: tensor.device,
    _attribute("is_meta"): lambda tensor: tensor.is_meta,
    _attribute("is_cpu"): lambda tensor: tensor.is_cpu,
    _attribute("is_cuda"): lambda tensor: tensor.is_cuda,
    _attribute("is_mps"): lambda tensor: tensor.is_mps,
    _attribute("is_xpu"): lambda tensor: tensor.is_xpu,
    Tensor.get_device: lambda tensor: tensor.get_device(),
}


class OwnDevice(TorchFunctionMode):
    """Tells a model that activations are where it is itself, so that it does what it really does.

    A model may have several ways to compute something, one for each kind of device, and values of
    earlier runs for some of them.

    Args:
        device: where the model is; see `device_of`.

    Example:
        >>> with OwnDevice(torch.device("cpu")):
        ...     torch.empty(3, device="meta").device
        device(type='cpu')
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._like = torch.empty(0, device=device)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _QUESTIONS and args[0].is_meta:
            return _QUESTIONS[func](self._like)
        if func is Tensor.type and args[0].is_meta and len(args) == 1 and not kwargs:
            return self._like.to(args[0].dtype).type()
        return func(*args, **(kwargs or {}))


def device_of(model: nn.Module, inputs: Any) -> torch.device:
    """Where a model really is.

    Args:
        model: that is going to run; of one on meta itself, its inputs count, or else a CPU. If it
            has buffers on meta, it is there: they cannot follow activations to where numbers are.
        inputs: of the run.

    Example:
        >>> device_of(nn.Linear(2, 1), torch.empty(1, 2, device="meta"))
        device(type='cpu')
    """
    if any(buffer.is_meta for buffer in model.buffers()):
        return torch.device("meta")
    given = (item.tensor for item in tensors_reached(inputs))
    held = chain(model.parameters(), model.buffers(), given)
    return next((tensor.device for tensor in held if not tensor.is_meta), torch.device("cpu"))
