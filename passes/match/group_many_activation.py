"""Many models in one basis, by what they make of the same data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.concluding import concluded
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.middle import distance_of_mean, mean_of_states
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Runner, check_loader, runner

_INTERRUPTED = "aligning was interrupted: the best elements so far are used"
_FIRST = 4
"""Batches that the mean is judged by."""
_LITTLE = 0.999
"""A round is the last one if it leaves more than this share of the distance."""


def activations_to_first(
    problem: GroupProblem,
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    max_sweeps: int,
    *,
    loader: Iterable[Any],
    max_batches: int | None = None,
) -> list[Element]:
    """Elements that bring what canonical states make of data close to each other.

    Each model is aligned with the first as the method `"activation"` aligns two. After that each is
    aligned, round by round, with the mean of what the others make of the same data, at all places
    that show units (Gower 1975, Generalized Procrustes analysis, on activations). What counts is
    what the mean of all weights computes: of all rounds, and of the models as they were, that is
    taken for which it is closest, on the first few batches, to the mean of what the models compute.
    Rounds end when that falls by less than a thousandth. On Ctrl-C the best so far is returned,
    with a warning.

    Args:
        problem: its groups and its seed; which two models it compares does not matter.
        states: canonical.
        weights: how much each counts.
        max_sweeps: most rounds over the models.
        loader: an iterable of batches that can be gone through repeatedly; targets are not used.
        max_batches: how many batches to use; all when left out.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.
    """
    check_loader(loader)
    if max_batches is not None:
        check_count("max_batches", max_batches)
    rounds = _Rounds(problem, states, weights, (loader, max_batches))
    with (
        closing(LateBar()) as report,
        interruptible(_INTERRUPTED),
        runner(problem.plain.model, problem.seed) as running,
    ):
        rounds.run(running, max_sweeps, report)
    return rounds.best


class _Rounds:
    """Models after what was found so far, in the balanced basis of the first one.

    Args:
        problem: of the groups.
        states: canonical.
        weights: how much each counts.
        seen: the loader, and the most batches of it.
    """

    def __init__(
        self,
        problem: GroupProblem,
        states: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
        seen: tuple[Iterable[Any], int | None],
    ) -> None:
        self._problem, self._states, self._weights = problem, states, weights
        self._loader, self._most = seen
        self.best = [problem.identity() for _ in states]
        self._least = float("inf")

    def run(self, running: Runner, max_sweeps: int, report: LateBar) -> None:
        """Align all with the first, and then with each other.

        Args:
            running: of the model.
            max_sweeps: most rounds.
            report: shows how far this is.
        """
        problem, count = self._problem, len(self._states)
        least = _FIRST if self._most is None else min(_FIRST, self._most)
        first = list(running.batches(self._loader, least))
        self._judge(running, self.best, first)
        elements = list(self.best)
        for index in range(1, count):
            pair = replace(problem, state_a=self._states[0], state_b=self._states[index])
            elements[index] = self._shown(Evidence(pair), running, report)
            self._judge(running, list(elements), first)
        to_balance = balanced(problem, seats_of(problem), self._states[0])
        generator = np.random.default_rng(problem.seed)
        for _ in range(max_sweeps if count > 2 else 0):
            before = self._least
            for index in map(int, generator.permutation(count)):
                step = self._step(running, elements, index, to_balance, report)
                elements[index] = problem.combined(step, elements[index])
            self._judge(running, _to_first(problem, elements), first)
            if self._least > _LITTLE * before:
                break

    def _step(
        self,
        running: Runner,
        elements: Sequence[Element],
        index: int,
        to_balance: Element,
        report: LateBar,
    ) -> Element:
        """What brings a model closer to the mean of the others."""
        problem = self._problem
        there = [
            {**state, **problem.moved(problem.combined(to_balance, element), state)}
            for element, state in zip(elements, self._states, strict=True)
        ]
        others = [k for k in range(len(there)) if k != index]
        shares = [self._weights[k] for k in others]
        mean = mean_of_states([there[k] for k in others], shares)
        posed = replace(problem, state_a=mean, state_b=there[index])
        references = list(zip(shares, (there[k] for k in others), strict=True))
        step = self._shown(Evidence(posed, references), running, report)
        back = problem.inverse(to_balance)
        return problem.combined(back, problem.combined(step, to_balance))

    def _shown(self, evidence: Evidence, running: Runner, report: LateBar) -> Element:
        evidence.collect(running, self._loader, self._most, report)
        return concluded(evidence, running, report)

    def _judge(self, running: Runner, elements: list[Element], batches: Sequence[Batch]) -> None:
        """Keep elements if the mean of what they make of the models is the best so far."""
        moved = [
            {**state, **self._problem.moved(element, state)}
            for element, state in zip(elements, self._states, strict=True)
        ]
        distance = distance_of_mean(running, moved, self._weights, batches)
        if distance < self._least:
            self._least, self.best = distance, elements


def _to_first(problem: GroupProblem, elements: Sequence[Element]) -> list[Element]:
    """The same in the basis in which the first model stays as it is."""
    back = problem.inverse(elements[0])
    return [problem.identity(), *(problem.combined(back, item) for item in elements[1:])]
