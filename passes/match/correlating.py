"""Correlations of the units of two models over some data, and the permutation that they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from typing import Any

import torch

from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.reference_run import ReferenceRun, reference_run
from fxrebasin.passes.match.representatives import Representative, find_representatives, watching
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.permutation import Permutation
from fxrebasin.running.batches import Batch, Runner, State
from fxrebasin.solvers.activations import Correlation, assemble
from fxrebasin.solvers.weight_search import Report, Solution, solve_from_evidence
from fxrebasin.wording import listed

_LISTED = 8


def concluded(
    problem: MatchingProblem, collector: Collector, finished: bool, report: Report
) -> MatchResult:
    """The permutation that data show, and weights where they show nothing.

    Args:
        problem: what is matched.
        collector: of all batches.
        finished: whether it saw all batches; otherwise weights are not asked.
        report: called with the stage, the number of steps that are done, and of all.
    """
    assembled = assemble(problem.symmetry.classes, problem.free, collector.correlations)
    solution = solve_from_evidence(assembled.problem, problem.seed, report)
    permutation = problem.permutation(solution.arrays)
    missing = [name for name in problem.free if name not in assembled.found]
    if missing and finished:
        rest = _by_weights(problem, permutation, missing, report)
        permutation = problem.permutation(rest.arrays).compose(permutation)
    return problem.result(permutation, solution.sweeps, _notes(missing, finished))


class Collector:
    """Correlations of what two sets of weights make of the same data.

    Args:
        problem: what is matched.
    """

    def __init__(self, problem: MatchingProblem) -> None:
        self._problem = problem
        self._representatives: dict[str, Representative] = {}
        self._by_module: dict[str, Correlation] = {}

    @property
    def correlations(self) -> list[Correlation]:
        """Of all modules that show units."""
        return list(self._by_module.values())

    def collect(
        self, running: Runner, loader: Iterable[Any], most: int | None, report: Report
    ) -> None:
        """Run both models on the batches of a loader.

        Args:
            running: of the model.
            loader: any iterable of batches.
            most: number of batches; all when None.
            report: called with the stage, the number of batches that are done, and of all.

        Raises:
            InputError: a model does not run on a batch.
        """
        total = most
        if isinstance(loader, Sized):
            total = min(len(loader), most or len(loader))
        self.see(running, running.batches(loader, most), total, report)

    def see(
        self, running: Runner, batches: Iterable[Batch], total: int | None, report: Report
    ) -> None:
        """Run both models on batches that a loader gave.

        Args:
            running: of the model.
            batches: from `running.batches`.
            total: how many there are, if that is known.
            report: called with the stage, the number of batches that are done, and of all.

        Raises:
            InputError: a model does not run on a batch.
        """
        with reference_run(self._problem, running) as reference:
            a = reference.runner.own(reference.state)
            b = running.own(self._problem.state_b)
            for batch in batches:
                if batch.number == 0:
                    self._prepare(running, reference, batch)
                self._add((reference.runner, a), (running, b), batch)
                report("activations", batch.number + 1, total)

    def _prepare(self, running: Runner, reference: ReferenceRun, batch: Batch) -> None:
        """Find out which modules to watch: those of both models that show units."""
        symmetry = self._problem.symmetry
        state = {n: t for n, t in self._problem.state_b.items() if n in symmetry.layout}
        own = {n: t.to(running.device) for n, t in state.items()}
        everywhere = find_representatives(
            running, symmetry.classes, symmetry.layout, own, batch, self._problem.ignored
        )
        own_modules = set(reference.own_modules([r.module for r in everywhere], batch))
        found = [r for r in everywhere if r.module in own_modules]
        self._representatives = {r.module: r for r in found}
        self._by_module = {r.module: Correlation(r.group) for r in found}

    def _add(self, a: tuple[Runner, State], b: tuple[Runner, State], batch: Batch) -> None:
        """Take in one batch."""
        waiting: dict[str, list[torch.Tensor]] = {name: [] for name in self._representatives}

        def keep(name: str, output: torch.Tensor) -> None:
            waiting[name].append(self._representatives[name].samples(output))

        def compare(name: str, output: torch.Tensor) -> None:
            samples = self._representatives[name].samples(output)
            if waiting[name]:
                other = waiting[name].pop(0)
                if other.shape == samples.shape:
                    self._by_module[name].add(other.to(samples), samples)

        for (running, state), see in ((a, keep), (b, compare)):
            with watching(running.model, list(self._representatives), see):
                running.call(state, running.moved(batch))


def _by_weights(
    problem: MatchingProblem, permutation: Permutation, missing: Sequence[str], report: Report
) -> Solution:
    """Match some classes by weights, after the others have been permuted."""
    moved = permutation.permute_state_dict(problem.state_b)
    rest = replace(problem.weights, state_b=moved, free=missing)
    return solve_from_evidence(rest, problem.seed, report)


def _notes(missing: Sequence[str], finished: bool) -> tuple[str, ...]:
    if not missing:
        return ()
    names = listed(missing, _LISTED)
    if not finished:
        return (f"classes that were left as they are, as matching was interrupted: {names}",)
    return (f"classes that no module's output shows, matched by their weights: {names}",)
