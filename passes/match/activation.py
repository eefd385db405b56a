"""Method "activation": units that react in the same way to the same data belong together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from contextlib import closing
from typing import Any

import torch
from torch import nn

from fxrebasin.passes.match.problem import (
    HasSymmetry,
    LateBar,
    Matching,
    MatchResult,
    check_count,
    interruptible,
)
from fxrebasin.passes.match.representatives import Representative, find_representatives, watching
from fxrebasin.permutation import Permutation
from fxrebasin.running.batches import Batch, Runner, State, runner
from fxrebasin.solvers.activations import Correlation, assemble
from fxrebasin.solvers.weight import Solution, WeightProblem, solve_weights
from fxrebasin.wording import listed

_MOST_SWEEPS = 100
_LISTED = 8


def match_activations(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    loader: Iterable[Any],
    max_batches: int | None = None,
    classes: Collection[str] | None = None,
) -> MatchResult:
    """Activation matching: pair the units whose activations correlate most over some data.

    Li et al. 2015, arXiv:1511.07543; Git Re-Basin, arXiv:2209.04836, section 3.1, with correlations
    instead of inner products, since a unit stays the same unit at another scale.

    Both models run on the same batches. The outputs of modules that show the units of a class are
    found by experiment (see `fxrebasin.passes.match.representatives`); their correlations are
    summed over all of these modules. Only sums are kept: memory is for one batch of outputs and n²
    numbers for n units. Classes within others are solved together with the outer one. Classes that
    no module's output shows (those inside `nn.MultiheadAttention`) are matched by weights, with the
    others held; the notes of the result name them. On Ctrl-C the batches so far count, with a
    warning.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: of torch's generator while the loader runs, and for classes matched by weights.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        model: what is run, in eval mode.
        loader: any iterable of batches, `(inputs, targets)` or inputs alone, whose targets are not
            used. Inputs are a tensor, a tuple of positional inputs, or a dict by keyword. It is
            gone through once.
        max_batches: how many batches to use; all when left out.
        classes: names of the only classes that may move; all when left out.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.
        ArchitectureMismatchError: tensors are missing or differ in shape.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [torch.randn(16, 2) for _ in range(3)]
        >>> p = fxrebasin.match(b, ref=a, method="activation", loader=data)
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    matching = Matching(symmetry, state_b, state_a, parameters, classes)
    collector = _Collector(symmetry, state_a, state_b)
    finished = False
    with closing(LateBar()) as report:
        with interruptible(), runner(model, seed) as running:
            collector.collect(running, loader, max_batches, report)
            finished = True
        assembled = assemble(symmetry.classes, matching.free, collector.correlations)
        solution = solve_weights(assembled.problem, seed, _MOST_SWEEPS, report)
        permutation = matching.permutation(solution.arrays)
        missing = [name for name in matching.free if name not in assembled.found]
        if missing and finished:
            rest = _by_weights(matching.problem, permutation, missing, seed, report)
            permutation = matching.permutation(rest.arrays).compose(permutation)
    return matching.result(permutation, solution.sweeps, _notes(missing, finished))


class _Collector:
    """Correlations of what two sets of weights make of the same data."""

    def __init__(self, symmetry: HasSymmetry, state_a: State, state_b: State) -> None:
        self._symmetry = symmetry
        self._states = state_a, state_b
        self._representatives: dict[str, Representative] = {}
        self._by_module: dict[str, Correlation] = {}

    @property
    def correlations(self) -> list[Correlation]:
        """Of all modules that show units."""
        return list(self._by_module.values())

    def collect(
        self,
        running: Runner,
        loader: Iterable[Any],
        most: int | None,
        report: Callable[[str, int, int | None], None],
    ) -> None:
        """Run both models on the batches of a loader."""
        a, b = (running.own(state) for state in self._states)
        total = most
        if isinstance(loader, Sized):
            total = min(len(loader), most or len(loader))
        for batch in running.batches(loader, most):
            if batch.number == 0:
                self._prepare(running, batch)
            self._add(running, a, b, batch)
            report("activations", batch.number + 1, total)

    def _prepare(self, running: Runner, batch: Batch) -> None:
        """Find out which modules to watch."""
        state = {n: t for n, t in self._states[1].items() if n in self._symmetry.layout}
        own = {n: t.to(running.device) for n, t in state.items()}
        found = find_representatives(
            running, self._symmetry.classes, self._symmetry.layout, own, batch
        )
        self._representatives = {r.module: r for r in found}
        self._by_module = {r.module: Correlation(r.group) for r in found}

    def _add(self, running: Runner, a: State, b: State, batch: Batch) -> None:
        """Take in one batch."""
        waiting: dict[str, list[torch.Tensor]] = {name: [] for name in self._representatives}

        def keep(name: str, output: torch.Tensor) -> None:
            waiting[name].append(self._representatives[name].samples(output))

        def compare(name: str, output: torch.Tensor) -> None:
            samples = self._representatives[name].samples(output)
            if waiting[name]:
                other = waiting[name].pop(0)
                if len(other) == len(samples):
                    self._by_module[name].add(other, samples)

        for state, see in ((a, keep), (b, compare)):
            with watching(running.model, list(self._representatives), see):
                running.call(state, batch)


def _by_weights(
    problem: WeightProblem,
    permutation: Permutation,
    missing: Sequence[str],
    seed: int,
    report: Callable[[str, int, int | None], None],
) -> Solution:
    """Match some classes by weights, after the others have been permuted."""
    moved = permutation.permute_state_dict(problem.state_b)
    rest = WeightProblem(
        problem.classes, problem.layout, problem.state_a, moved, problem.names, missing
    )
    return solve_weights(rest, seed, _MOST_SWEEPS, report)


def _notes(missing: Sequence[str], finished: bool) -> tuple[str, ...]:
    if not missing:
        return ()
    names = listed(missing, _LISTED)
    if not finished:
        return (f"classes that were left as they are, as matching was interrupted: {names}",)
    return (f"classes that no module's output shows, matched by their weights: {names}",)
