"""Method "frank_wolfe": all classes at once, over soft maps."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import closing

import numpy as np
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
from fxrebasin.passes.match.weight import check_effort
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.frank_wolfe import FrankWolfe
from fxrebasin.solvers.relaxed import Maps, Relaxation, between
from fxrebasin.solvers.weight import Report, WeightSearch

_MOST_SWEEPS = 100


def match_frank_wolfe(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    match_buffers: bool = False,
    max_steps: int = 100,
    classes: Collection[str] | None = None,
    restarts: int | None = None,
    budget: float | None = None,
) -> MatchResult:
    """Frank-Wolfe: maximise the agreement of the weights over doubly stochastic matrices.

    Crisostomi et al. 2024, C2M3, arXiv:2405.17897, for a pair of models. The objective is that of
    weight matching. It starts in the centre, where nothing is decided, and moves all classes at
    the same time: to the corner that the gradient points to, as far as is best (exactly, since
    the objective along a line is a polynomial). What it ends at is projected by linear assignment,
    and coordinate descent goes on from there. Not in the paper: classes within others have a
    matrix for every pair of copies, and the result of plain coordinate descent is taken where it
    is better, so that this method never falls below `"weight"` without its options. Needs no
    data; about ten times the time of `"weight"`. On Ctrl-C the best permutation so far is
    returned, with a warning.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: for random starts, and the order in which coordinate descent visits classes.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        model: not needed.
        match_buffers: compare buffers (running statistics) as well.
        max_steps: from each start, at least 1.
        classes: names of the only classes that may move; all when left out.
        restarts: ascents from random points between the centre and random permutations, after the
            one from the centre. 0 by default, or with a `budget` as many as there is time for.
        budget: seconds after which no further step is made. How many fit is up to the machine:
            give `restarts` alone for a result that can be repeated.

    Raises:
        InputError: an option cannot be used, or a tensor has no values or values that are not
            finite.
        ArchitectureMismatchError: tensors are missing or differ in shape.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> p = fxrebasin.match(b, ref=a, method="frank_wolfe", restarts=2)
    """
    began = time.perf_counter()
    check_count("max_steps", max_steps)
    times, deadline = check_effort(restarts, budget, began)
    names = None if match_buffers else parameters
    matching = Matching(symmetry, state_b, state_a, names, classes)
    with closing(LateBar()) as report:
        search = WeightSearch(matching.problem, seed, _MOST_SWEEPS, report)
        ascents = _Ascents(search, max_steps, deadline, report)
        with interruptible():
            search.start_all(search.usual_starts())
            ascents.run(seed, times)
    solution = search.solution()
    return matching.result(matching.permutation(solution.arrays), solution.sweeps)


class _Ascents:
    """Frank-Wolfe from the centre and from random points; the search keeps the best."""

    def __init__(
        self, search: WeightSearch, most_steps: int, deadline: float, report: Report
    ) -> None:
        self._search, self._report = search, report
        self._most_steps, self._deadline = most_steps, deadline
        self._relaxation = Relaxation(search.problem)

    def run(self, seed: int, times: int | None) -> None:
        """Ascend from the centre, and from random points as often as is allowed."""
        generator = np.random.default_rng([seed, 2])
        k = 0
        while not (self._search.interrupted or self._search.is_near_perfect()):
            self._ascend(k, self._relaxation.centre() if k == 0 else self._random(generator))
            k += 1
            late = time.perf_counter() >= self._deadline
            if late or (times is not None and k > times):
                break

    def _ascend(self, k: int, maps: Maps) -> None:
        """Ascend, project, and go on by coordinate descent; also from where it was interrupted."""
        ascent = FrankWolfe(self._relaxation, maps)
        stage = "Frank-Wolfe" if k == 0 else f"Frank-Wolfe from random start {k}"
        try:
            ascent.run(
                self._most_steps,
                self._deadline,
                lambda steps: self._report(stage, steps, self._most_steps),
            )
        except KeyboardInterrupt:
            self._search.offer(self._relaxation.rounded(ascent.maps))
            raise
        self._search.polish(self._relaxation.rounded(ascent.maps), f"polishing {k}")

    def _random(self, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """A point between the centre and a random corner."""
        problem = self._search.problem
        seed = int(generator.integers(2**32))
        corner = self._relaxation.corner(
            Permutation.random(problem.classes, problem.layout, seed).arrays
        )
        return between(self._relaxation.centre(), corner)
