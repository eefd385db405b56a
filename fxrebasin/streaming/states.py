"""How far a match is, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fxrebasin.layout import IntArray


@dataclass(frozen=True)
class Progress:
    """How far a match is: everything that is needed to go on with it.

    Args:
        sweep: that is being made, from 1.
        step: the number of its next step.
        arrays: int64 by class name.
        known: names of the classes that are decided.
        totals: gains of the streams, as far as this process summed them up in this sweep.
        scales: the exponent of their units, and what is known of their terms; those of streams
            without totals as well.
        told: how many elements of a unit of each stream these are made of.
        stale: roots of families whose gains changed since they were solved.
        before: of all tensors that were read, with the model as it is.
        after: the same, with the model as it was arranged when they were read.
        gained: what streams collected since.
        meetings: how often the processes told each other what they had.
    """

    sweep: int
    step: int
    arrays: Mapping[str, IntArray]
    known: tuple[str, ...]
    totals: Mapping[str, torch.Tensor]
    scales: Mapping[str, tuple[int, int, float, int]]
    told: Mapping[str, int]
    stale: frozenset[str]
    before: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    after: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    gained: float = 0.0
    meetings: int = 0

    @property
    def bytes(self) -> int:
        """Of arrays and gains."""
        arrays = sum(array.nbytes for array in self.arrays.values())
        return arrays + sum(total.nbytes for total in self.totals.values())


@dataclass(frozen=True)
class Found:
    """What a match found.

    Args:
        arrays: int64 by class name.
        objective_before: sum of the inner products.
        objective_after: the same with the arranged model.
        distance_before: Euclidean distance.
        distance_after: the same with the arranged model.
        sweeps: that were made.
        settled: whether nothing could move any more.
    """

    arrays: Mapping[str, IntArray]
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    settled: bool
