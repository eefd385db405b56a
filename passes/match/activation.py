"""Method "activation": units that react in the same way to the same data belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.reference_run import ReferenceRun, reference_run
from fxrebasin.passes.match.representatives import Representative, find_representatives, watching
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Runner, State, runner
from fxrebasin.solvers.activations import Correlation, assemble
from fxrebasin.solvers.weight_search import Report, Solution, solve_from_evidence
from fxrebasin.wording import listed

_LISTED = 8


def match_activations(
    problem: MatchingProblem, *, loader: Iterable[Any], max_batches: int | None = None
) -> MatchResult:
    """Activation matching: pair the units whose activations correlate most over some data.

    Li et al. 2015, arXiv:1511.07543; Git Re-Basin, arXiv:2209.04836, section 3.1, with correlations
    instead of inner products, since a unit stays the same unit at another scale.

    Both models run on the same batches. Where tensors are ignored, because the reference has
    others, it runs with those: a module by its own code, weights by that of the model. Where it has
    none it runs with the model's, and outputs that these have a part in do not count.

    The outputs of modules that show the units of a class are found by experiment (see
    `fxrebasin.passes.match.representatives`); their correlations are summed over all of these
    modules. Only sums are kept: memory is for one batch of outputs and n²
    numbers for n units. Classes within others are solved together with the outer one. Classes that
    no module's output shows (those inside `nn.MultiheadAttention`) are matched by weights, with the
    others held; the notes of the result name them. On Ctrl-C the batches so far count, with a
    warning.

    Args:
        problem: what to match; its seed decides the order of a shuffling loader, and the search
            for classes that are matched by weights.
        loader: any iterable of batches, `(inputs, targets)` or inputs alone, whose targets are not
            used. Inputs are a tensor, a tuple of positional inputs, or a dict by keyword. It is
            gone through once.
        max_batches: how many batches to use; all when left out.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [torch.randn(16, 2) for _ in range(3)]
        >>> p = fxrebasin.match(b, ref=a, method="activation", loader=data)
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    collector = _Collector(problem)
    finished = False
    with closing(LateBar()) as report:
        with interruptible(), runner(problem.model, problem.seed) as running:
            with reference_run(problem, running) as reference:
                collector.collect(running, reference, loader, max_batches, report)
            finished = True
        assembled = assemble(problem.symmetry.classes, problem.free, collector.correlations)
        solution = solve_from_evidence(assembled.problem, problem.seed, report)
        permutation = problem.permutation(solution.arrays)
        missing = [name for name in problem.free if name not in assembled.found]
        if missing and finished:
            rest = _by_weights(problem, permutation, missing, report)
            permutation = problem.permutation(rest.arrays).compose(permutation)
    return problem.result(permutation, solution.sweeps, _notes(missing, finished))


class _Collector:
    """Correlations of what two sets of weights make of the same data."""

    def __init__(self, problem: MatchingProblem) -> None:
        self._problem = problem
        self._representatives: dict[str, Representative] = {}
        self._by_module: dict[str, Correlation] = {}

    @property
    def correlations(self) -> list[Correlation]:
        """Of all modules that show units."""
        return list(self._by_module.values())

    def collect(
        self,
        running: Runner,
        reference: ReferenceRun,
        loader: Iterable[Any],
        most: int | None,
        report: Report,
    ) -> None:
        """Run both models on the batches of a loader."""
        a = reference.runner.own(reference.state)
        b = running.own(self._problem.state_b)
        total = most
        if isinstance(loader, Sized):
            total = min(len(loader), most or len(loader))
        for batch in running.batches(loader, most):
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
