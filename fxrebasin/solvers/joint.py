"""Several models at once over soft maps: the sum of the agreements of all pairs.

Crisostomi et al. 2024, C2M3, arXiv:2405.17897: every model has its own maps, to one order of units
that belongs to none of them, so that the maps between models, composed of these, are consistent
around every cycle. As that order can be any, it is that of the first model, which stays where it
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fxrebasin.gather import storage_identity
from fxrebasin.indexing import Arrays, identity_arrays
from fxrebasin.layout import IntArray
from fxrebasin.solvers.relaxed import Maps, Relaxation, gradient_of
from fxrebasin.solvers.weight_problem import WeightProblem


class JointRelaxation:
    """The weighted sum of the agreements of all pairs of models, a polynomial in soft maps.

    Args:
        problems: of the first model with each model, the first included; of the same classes,
            layout and names.
        weights: of the models.
    """

    def __init__(self, problems: Sequence[WeightProblem], weights: Sequence[float]) -> None:
        self._parts = [Relaxation(_without_ties(problem)) for problem in problems]
        self._weights = list(weights)
        first = self._parts[0]
        self._still = first.corner(identity_arrays(first.classes))
        self.degree = 2 * first.degree
        self.scale = sum(self._bound(k) for k in range(len(first.pairs)))

    def centre(self) -> dict[str, torch.Tensor]:
        """Maps that say nothing about any model but the first."""
        return self._joined([part.centre() for part in self._parts[1:]])

    def corner(self, arrays: Sequence[Arrays]) -> dict[str, torch.Tensor]:
        """The maps of permutations.

        Args:
            arrays: of every model but the first, by class name.
        """
        corners = zip(self._parts[1:], arrays, strict=True)
        return self._joined(
            [
                {c.name: corner[c.name] for c in part.free}
                for part, found in corners
                for corner in [part.corner(found)]
            ]
        )

    def rounded(self, maps: Maps) -> list[dict[str, IntArray]]:
        """The permutations of every model but the first that agree most with soft maps.

        Args:
            maps: of all models.
        """
        return [
            part.rounded(own) for part, own in zip(self._parts[1:], self._split(maps), strict=True)
        ]

    def value(self, maps: Maps) -> float:
        """The objective.

        Args:
            maps: of all models but the first.
        """
        with torch.no_grad():
            return sum(float(value) for value in self._agreements(maps))

    def gradient(self, maps: Maps) -> tuple[float, dict[str, torch.Tensor]]:
        """The objective and its derivatives, one tensor of the models at a time.

        Args:
            maps: of all models but the first.
        """
        return gradient_of(self._agreements, maps)

    def _agreements(self, maps: Maps) -> Iterator[torch.Tensor]:
        """Of every tensor: each model with the sum of those before it."""
        split = [self._still, *self._split(maps)]
        for k in range(len(self._parts[0].pairs)):
            value = torch.zeros((), dtype=torch.float64, device=self._parts[0].device)
            total: torch.Tensor | None = None
            for part, own, weight in zip(self._parts, split, self._weights, strict=True):
                moved = weight * part.moved(part.pairs[k], own).to(self._parts[0].device)
                if total is not None:
                    value = value + (total * moved).sum(dtype=torch.float64)
                total = moved if total is None else total + moved
            yield value

    def _bound(self, k: int) -> float:
        """What the agreement of a tensor cannot exceed."""
        norms = [
            weight * float(part.cast(part.pairs[k].b).norm())
            for part, weight in zip(self._parts, self._weights, strict=True)
        ]
        return (sum(norms) ** 2 - sum(norm**2 for norm in norms)) / 2

    def _joined(self, maps: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {
            f"{index}/{name}": m for index, own in enumerate(maps, 1) for name, m in own.items()
        }

    def _split(self, maps: Maps) -> list[dict[str, torch.Tensor]]:
        names = [[c.name for c in part.free] for part in self._parts]
        return [
            {name: maps[f"{index}/{name}"] for name in names[index]}
            for index in range(1, len(self._parts))
        ]


def _without_ties(problem: WeightProblem) -> WeightProblem:
    """The problem with memory of its own for every name, so that all models have the same pairs."""
    seen = set()
    state = dict(problem.state_b)
    for name in problem.names:
        tie = storage_identity(state[name])
        if tie in seen:
            state[name] = state[name].clone()
        seen.add(storage_identity(state[name]))
    return replace(problem, state_b=state)
