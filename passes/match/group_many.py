"""Many models in one basis: generalised Procrustes over the groups of a symmetry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from fxrebasin.counted import counted_state
from fxrebasin.interruption import interruptible
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.group_descent import GroupDescent
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.seats import Seats, seats_of
from fxrebasin.progress import LateBar

_SWEEPS = 4
"""Over the classes of one model, before the mean is taken again."""


def elements_to_first(
    problem: GroupProblem,
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    max_sweeps: int,
) -> list[Element]:
    """Elements that bring canonical states close to each other, in the basis of the first one.

    All are balanced. Each is aligned with the first; after that each is aligned, round by round,
    with the mean of the others, class by class, until their agreement does not grow (Gower 1975,
    Generalized Procrustes analysis). On Ctrl-C the best so far is returned, with a warning.

    Args:
        problem: its groups and its seed; which two models it compares does not matter.
        states: canonical.
        weights: how much each counts.
        max_sweeps: most rounds over the models, and most sweeps for the first alignment.
    """
    problem = problem.counted()
    seats = seats_of(problem)
    compared = [counted_state(state, problem.plain.symmetry.layout) for state in states]
    alignment = _Alignment(problem, seats, compared, weights)
    generator = np.random.default_rng(problem.seed)
    with closing(LateBar()) as report, interruptible():
        for index in range(1, len(states)):
            report("aligning with the first", index, len(states))
            alignment.start(index, max_sweeps)
        for number in range(max_sweeps if len(states) > 1 else 0):
            before = alignment.agreement()
            for done, index in enumerate(generator.permutation(len(states))):
                report(f"aligning, round {number + 1}", done, len(states))
                alignment.improve(int(index))
            if alignment.agreement() - before <= _LITTLE * abs(before):
                break
    return alignment.to_first()


_LITTLE = 1e-6
"""A round is the last one if it gains less than this share of the agreement."""


class _Alignment:
    """Balanced states of all models, after what was found so far."""

    def __init__(
        self,
        problem: GroupProblem,
        seats: Seats,
        states: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
    ) -> None:
        self._problem, self._seats, self._weights = problem, seats, weights
        self._to = [balanced(problem, seats, state) for state in states]
        self._current = [
            problem.moved(element, state) for element, state in zip(self._to, states, strict=True)
        ]
        self._found = [problem.identity() for _ in states]

    def start(self, index: int, max_sweeps: int) -> None:
        """Align one model with the first."""
        descent = self._descent(index, self._current[0])
        descent.decide()
        self._run(descent, index, max_sweeps)

    def improve(self, index: int) -> None:
        """Align one model with the mean of the others."""
        others = [k for k in range(len(self._current)) if k != index]
        self._run(self._descent(index, self._mean(others)), index, _SWEEPS)

    def agreement(self) -> float:
        """Squared length of the weighted mean of all models."""
        mean = self._mean(range(len(self._current)))
        return sum(float(tensor.square().sum()) for tensor in mean.values())

    def _mean(self, indices: Iterable[int]) -> dict[str, Tensor]:
        weight, found = 0.0, dict[str, Tensor]()
        for index in indices:
            weight += self._weights[index]
            share = self._weights[index] / weight
            for name in self._problem.compared:
                own = self._current[index][name]
                found[name] = torch.lerp(found[name], own, share) if name in found else own
        return found

    def to_first(self) -> list[Element]:
        """From each model's canonical state to the basis of the first one's."""
        problem = self._problem
        back = problem.combined(problem.inverse(self._to[0]), problem.inverse(self._found[0]))
        return [
            problem.combined(back, problem.combined(found, to))
            for found, to in zip(self._found, self._to, strict=True)
        ]

    def _descent(self, index: int, reference: Mapping[str, Tensor]) -> GroupDescent:
        current = dict(self._current[index])
        return GroupDescent(self._problem, self._seats, reference, current, self._found[index])

    def _run(self, descent: GroupDescent, index: int, sweeps: int) -> None:
        descent.sweep(sweeps, lambda *_: None)
        self._found[index], self._current[index] = descent.element, descent.current
