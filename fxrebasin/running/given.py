"""The inputs of a call: copies of them with other tensors, and what was written to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxrebasin.running.contents import Output, tensors_reached
from fxrebasin.running.messages import attempt


class Given:
    """The inputs of a call as they are before it, to see afterwards what was written to them.

    Args:
        args: positional inputs, the very objects that the model gets.
        kwargs: keyword inputs.
        values: also compare values, which sees writes past PyTorch; not for meta tensors.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], values: bool = False
    ) -> None:
        self._values = {str(index): value for index, value in enumerate(args)} | dict(kwargs)
        self._before = {
            id(item.tensor): (item.tensor, _version(item.tensor), _copied(item.tensor, values))
            for item in tensors_reached(self._values)
        }

    def each(self, do: Callable[[torch.Tensor], object]) -> None:
        """Do something with every tensor among the inputs."""
        for tensor, _, _ in self._before.values():
            do(tensor)

    def put(self) -> list[str]:
        """The names of the tensors that were put into containers and objects since."""
        return [item.name for item in self.written() if id(item.tensor) not in self._before]

    def written(self) -> list[Output]:
        """The tensors among the inputs that are new there or were written to since."""
        return [
            Output(f"inputs.{item.name}", item.tensor, item.cache)
            for item in tensors_reached(self._values)
            if self._changed(item.tensor)
        ]

    def _changed(self, tensor: torch.Tensor) -> bool:
        if id(tensor) not in self._before:
            return True
        _, version, copied = self._before[id(tensor)]
        if version != _version(tensor):
            return True
        return copied is not None and not _same_values(tensor, copied)


def remade(values: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    """A copy of inputs that has other tensors in the places of theirs.

    Containers and objects are copied as well, so that a model that fills them leaves the caller's
    alone. Tensors that are the same stay the same.

    Args:
        values: inputs; not changed.
        make: from a tensor to the one in its place.

    Example:
        >>> remade(([torch.ones(2)], "same"), torch.zeros_like)
        ([tensor([0., 0.])], 'same')
    """
    tensors = {id(item.tensor): item.tensor for item in tensors_reached(values)}
    made = {key: make(tensor) for key, tensor in tensors.items()}
    copies: list[Any] = []
    if attempt(lambda: copies.append(copy.deepcopy(values, dict(made)))) is None:
        return copies[0]
    return pytree.tree_map_only(torch.Tensor, lambda tensor: made[id(tensor)], values)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)


def _copied(tensor: torch.Tensor, values: bool) -> torch.Tensor | None:
    return tensor.detach().clone() if values and not tensor.is_meta else None


def _same_values(tensor: torch.Tensor, copied: torch.Tensor) -> bool:
    if tensor.shape != copied.shape or tensor.dtype != copied.dtype:
        return False
    tensor = tensor.detach()
    return bool(((tensor == copied) | ((tensor != tensor) & (copied != copied))).all())
