"""Tensors of a reference, brought into the form that a file has, and the other way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxrebasin.importers.onnx.origins import Leaf


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

    def undone(self, tensor: Tensor) -> Tensor:
        """A tensor of the file, with its axes as in the reference.

        Args:
            tensor: in the place of this one.
        """
        return tensor if self.order is None else tensor.permute(inverse(self.order))


@dataclass(frozen=True)
class Assembled(Partner):
    """A tensor of a file in the place of parts of those of a reference, which keeps them otherwise.

    Args:
        name: of the first of them.
        order: how axes have to be transposed after parts were joined.
        parts: as they are read, joined along their last axis.
        shape: of the tensor of the file.
        read: the shape in which the file reads it.
    """

    parts: tuple[Leaf, ...] = ()
    shape: tuple[int, ...] = ()
    read: tuple[int, ...] = ()

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, as in the file.

        Args:
            tensors: of the reference.
        """
        parts = [_read_as(leaf, tensors[leaf.name]) for leaf in self.parts]
        found = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).reshape(self.read)
        found = found if self.order is None else found.permute(self.order)
        return found.reshape(self.shape).contiguous()


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Which tensors of two files go together.

    Args:
        tensors: of the reference, by the names of those of the file.
        forms: tensors of the file that are compared in another form than it has them in, since the
            reference has that only: with what follows their layers.
        absorbed: names of tensors of the file that are in the forms of others, and have no partner.
        alone: names of tensors of the file that have none, and that the reference computes.
        alike: whether it is known that with these tensors the file computes what the reference
            does: nothing else differs, or both were run.
        numbers: names of tensors that are no weights, and that hold something else in a reference
            whose nodes are the same.
    """

    tensors: Mapping[str, Partner]
    forms: Mapping[str, Partner] = field(default_factory=dict)
    absorbed: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    alike: bool = False
    numbers: tuple[str, ...] = ()


def _read_as(leaf: Leaf, tensor: Tensor) -> Tensor:
    found = tensor if leaf.order is None else tensor.permute(leaf.order)
    found = found if leaf.computed is None else leaf.computed.of(found)
    return found if leaf.part is None else found[..., slice(*leaf.part)]


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """How axes are put back that were transposed."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))
