"""A tensor of a reference, brought into the form that a file has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.importers.onnx.outline import Leaf


@dataclass(frozen=True)
class Partner:
    """A tensor of a reference.

    Args:
        name: of it.
        order: how its axes have to be transposed to be as in the file; None if they are.
    """

    name: str
    order: tuple[int, ...] | None = None

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, with its axes as in the file.

        Args:
            tensors: of the reference.
        """
        found = tensors[self.name]
        return found if self.order is None else found.permute(self.order).contiguous()


@dataclass(frozen=True)
class Assembled(Partner):
    """A tensor of a file in the place of parts of those of a reference, which keeps them otherwise.

    Args:
        name: of the first of them.
        order: how axes have to be transposed after parts were joined.
        parts: as they are read, joined along their last axis.
        shape: of the tensor of the file.
    """

    parts: tuple[Leaf, ...] = ()
    shape: tuple[int, ...] = ()

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, as in the file.

        Args:
            tensors: of the reference.
        """
        read = [_read_as(leaf, tensors[leaf.name]) for leaf in self.parts]
        found = read[0] if len(read) == 1 else torch.cat(read, -1)
        found = found if self.order is None else found.permute(self.order)
        return found.reshape(self.shape).contiguous()


def _read_as(leaf: Leaf, tensor: Tensor) -> Tensor:
    found = tensor if leaf.order is None else tensor.permute(leaf.order)
    return found if leaf.part is None else found[..., slice(*leaf.part)]
