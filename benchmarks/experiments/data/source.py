"""Items that a network is trained or measured on, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Items with targets, by number."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def batch(self, indices: Tensor) -> Batch:
        """Inputs `[n, ...]` and targets `[n, ...]` (int64) of some items.

        Args:
            indices: `[n]` int64, each below the number of items.
        """
        ...


@dataclass(frozen=True)
class InMemory:
    """Items held as tensors.

    Args:
        inputs: `[n, ...]`.
        targets: `[n, ...]` int64.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> Batch:
        """Inputs and targets of some items."""
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True)
class Subset:
    """Some items of a source.

    Args:
        source: of all items.
        indices: `[n]` int64, of those that are taken.
    """

    source: Source
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> Batch:
        """Inputs and targets of some items."""
        return self.source.batch(self.indices[indices])


@dataclass(frozen=True)
class Batches:
    """The items of a source in order, batch by batch; can be gone through again and again.

    Args:
        source: of the items.
        size: of a batch; the last one may be smaller.
        most: number of batches; all when None.

    Example:
        >>> items = InMemory(torch.zeros(5, 2), torch.arange(5))
        >>> [len(targets) for _, targets in Batches(items, size=2)]
        [2, 2, 1]
    """

    source: Source
    size: int
    most: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.source)).split(self.size)
        yield from (self.source.batch(indices) for indices in order[: self.most])


@dataclass(frozen=True)
class Data:
    """A data set.

    Args:
        name: as tables and pictures call it.
        train: to train on, and to take statistics of.
        test: held out; all losses and accuracies are taken on these items.
        shape: of the inputs of one item.
        classes: number of values that a target can have.
        embedded: comes with installed packages, not from `--data-dir`.
    """

    name: str
    train: Source
    test: Source
    shape: tuple[int, ...]
    classes: int
    embedded: bool

    def describe(self) -> str:
        """Name and number of items."""
        return f"{self.name}: {len(self.train)} items to train on, {len(self.test)} held out"


def fingerprint(source: Source, sample: int = 64) -> str:
    """A digest that changes with the number of items and with any of some evenly spaced ones.

    Args:
        source: of the items.
        sample: number of items to look at.
    """
    count = len(source)
    digest = hashlib.sha256(str(count).encode())
    indices = torch.arange(0, count, max(1, count // sample))
    for tensor in source.batch(indices):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
