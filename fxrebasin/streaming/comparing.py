"""How alike both models are: summed up tensor by tensor while they pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch

from fxrebasin.passes.match.closeness import closeness_of
from fxrebasin.ranks import Ranks
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.dealing import Part
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.sweeping import Tensors, moved

Sums: TypeAlias = dict[str, tuple[float, float]]
"""Inner product and squared distance, by what tells a part of a tensor from others."""


class Comparing:
    """Inner products and squared distances of all tensors that passed.

    Args:
        problem: shapes, and where units are.
        shared: names of the tensors that hold several streams, or one twice.
        placement: how the model is arranged.
        before: sums that were made with the model as it is.
        after: sums that were made with the model as it was arranged when they were made.

    Attributes:
        before: all of these so far.
        after: all of those so far.
    """

    def __init__(
        self,
        problem: FileProblem,
        shared: Collection[str],
        placement: Placement,
        before: Mapping[str, tuple[float, float]],
        after: Mapping[str, tuple[float, float]],
    ) -> None:
        self._problem, self._shared, self._placement = problem, shared, placement
        self.before: Sums = dict(before)
        self.after: Sums = dict(after)

    def compare(self, part: Part, name: str, tensors: Tensors) -> None:
        """Compare a part of a tensor, as it is if that was not done, and as it lies now.

        Args:
            part: what was read at once.
            name: of the tensor.
            tensors: of the part.

        Raises:
            InputError: a tensor holds values that are not finite.
        """
        label = part.label(name)
        if label not in self.before:
            self.before[label] = closeness_of(name, *tensors[name])
        self._lies(label, name, tensors[name])

    def compare_first(self, name: str, both: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Compare a tensor as it is, if that was not done.

        What several streams hold counts when they are solved, perhaps in parts.

        Args:
            name: of the tensor.
            both: of the reference and of the model.

        Raises:
            InputError: a tensor holds values that are not finite.
        """
        if name not in self.before:
            found = closeness_of(name, *both)
            if name not in self._shared:
                self.before[name] = found

    def compare_settled(self, name: str, both: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Compare a tensor as it lies now.

        Args:
            name: of the tensor.
            both: of the reference and of the model.
        """
        self._lies(name, name, both)

    def _lies(self, label: str, name: str, both: tuple[torch.Tensor, torch.Tensor]) -> None:
        now = moved(both[1], self._problem.layout.get(name, ()), self._placement.arrays)
        self.after[label] = closeness_of(name, both[0], now)

    def summed(self, ranks: Ranks) -> tuple[tuple[float, float], tuple[float, float]]:
        """Inner product and squared distance over all processes: as it is, and as it was arranged.

        Args:
            ranks: the processes.
        """
        parts = ranks.every((self.before, self.after))
        every = ([one for one, _ in parts], [two for _, two in parts])
        before, after = ((_sum(sums, 0), _sum(sums, 1)) for sums in every)
        return before, after


def _sum(parts: list[Sums], which: int) -> float:
    return math.fsum(pair[which] for part in parts for pair in part.values())
