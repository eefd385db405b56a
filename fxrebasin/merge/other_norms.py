"""Running statistics that no BatchNorm layer reads, so that nobody recomputes them."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from fxrebasin.errors import FxRebasinWarning
from fxrebasin.running.watching import OperatorMode
from fxrebasin.wording import escaped


class MeansRead(OperatorMode):
    """Notes the memory of running means with which operators inside normalise.

    Operators that normalise by the batch read none.

    Attributes:
        found: identities of storages.

    Example:
        >>> mean, variance = torch.zeros(2), torch.ones(2)
        >>> with MeansRead() as read:
        ...     normal = torch.nn.functional.batch_norm(torch.ones(3, 2), mean, variance)
        >>> read.found == {mean.untyped_storage()._cdata}
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[int] = set()

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        names = [argument.name for argument in func._schema.arguments]
        if "running_mean" in names:
            given = dict(zip(names, args, strict=False)) | kwargs
            mean = given["running_mean"]
            if isinstance(mean, torch.Tensor) and not given.get("training"):
                self.found.add(mean.untyped_storage()._cdata)
        return func(*args, **kwargs)


def instance_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The InstanceNorm layers that keep statistics, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _InstanceNorm) and layer.running_mean is not None
    }


def warn_left(model: nn.Module, read: Collection[int], ran: Collection[str]) -> None:
    """Warn of running statistics that were used and stay what they were.

    Args:
        model: that ran.
        read: identities of the storages of the running means that operators read.
        ran: names of the layers that ran and keep statistics; of BatchNorm, they get new ones.
    """
    others = {name for name in instance_norms(model) if name in ran}
    anew = {_memory(model.get_submodule(n).get_buffer("running_mean")) for n in {*ran} - others}
    read = {*read} - anew
    left = [
        name
        for name, buffer in model.named_buffers()
        if _memory(buffer) in read or name in {f"{other}.running_mean" for other in others}
    ]
    if left:
        warnings.warn(
            f"recalibrate: {escaped(', '.join(left[:3]), 200)}"
            f"{f' and {len(left) - 3} more' if len(left) > 3 else ''} stay as they were, with what "
            "belongs to them: forward reads them, but calls no BatchNorm layer that has them "
            "(a graph from torch.export has operators in the place of layers: pass the module "
            "that it was made from, with the weights of the graph; running statistics of "
            "InstanceNorm are not recomputed)",
            category=FxRebasinWarning,
            stacklevel=4,
        )


def _memory(tensor: torch.Tensor) -> int | None:
    """Which memory it lies in; of those that are not strided nothing can be said."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
