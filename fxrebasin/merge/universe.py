"""All models to one order of units at once, cycle-consistent (C2M3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch

from fxrebasin.interruption import interruptible
from fxrebasin.merge.alignment import AlignmentProblem, MeanAlignment
from fxrebasin.options import check_count
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar
from fxrebasin.solvers.frank_wolfe import FrankWolfe
from fxrebasin.solvers.joint import JointRelaxation
from fxrebasin.solvers.relaxed import between


def align_in_universe(
    problem: AlignmentProblem, *, max_steps: int = 100, restarts: int = 0
) -> Sequence[Permutation]:
    """C2M3 (Crisostomi et al. 2024, arXiv:2405.17897): maximise the agreement of all pairs.

    The objective is the weighted sum, over all pairs of models, of the inner product of their
    weights. Frank-Wolfe maximises it over doubly stochastic matrices from every model to an order
    of units that all share; linear assignment follows, then coordinate descent, in which the sum
    never falls. Not in the paper: the first model stays where it is, since the shared order can be
    any; the first start is the centre, where no other model says anything; classes within others
    have a matrix for every pair of copies; and the result of algorithm 3 of Git Re-Basin is taken
    where it is better. On Ctrl-C the best permutations so far are returned, with a warning.

    Args:
        problem: what to align.
        max_steps: of Frank-Wolfe, from each start.
        restarts: ascents from random points between the centre and random permutations, after
            the one from the centre.

    Raises:
        InputError: an option cannot be used.
    """
    check_count("max_steps", max_steps)
    check_count("restarts", restarts, 0)
    best = MeanAlignment(problem)
    with interruptible():
        best.run(None)
        if len(problem.sources) > 1 and not best.interrupted:
            best = _better(problem, best, max_steps, restarts)
    return best.permutations


def _better(
    problem: AlignmentProblem, best: MeanAlignment, most_steps: int, restarts: int
) -> MeanAlignment:
    """The best of a result and of ascents."""
    states = [problem.sources.state(index) for index in range(len(problem.sources))]
    relaxation = JointRelaxation(
        [problem.pair(state, states[0]).weights for state in states], problem.sources.weights
    )
    generator = np.random.default_rng([problem.seed, 2])
    value = best.value()
    for k in range(restarts + 1):
        start = relaxation.centre() if k == 0 else _random(problem, relaxation, generator)
        found = _ascended(problem, relaxation, start, most_steps)
        reached = found.value()
        if reached > value:
            best, value = found, reached
        if found.interrupted:
            break
    return best


def _ascended(
    problem: AlignmentProblem,
    relaxation: JointRelaxation,
    start: dict[str, torch.Tensor],
    most_steps: int,
) -> MeanAlignment:
    """Ascend, round, and descend from there unless it was interrupted."""
    ascent = FrankWolfe(relaxation, start)
    finished = False
    with closing(LateBar()) as report, interruptible():
        ascent.run(most_steps, math.inf, lambda k: report("Frank-Wolfe", k, most_steps))
        finished = True
    symmetry = problem.symmetry
    rounded = [
        Permutation(symmetry.classes, arrays, symmetry.layout).relying_on(
            symmetry.relies_on, symmetry.found_with
        )
        for arrays in relaxation.rounded(ascent.maps)
    ]
    found = MeanAlignment(problem)
    found.permutations = [found.permutations[0], *rounded]
    if finished:
        found.run(found.permutations, polishing=True)
    found.interrupted |= not finished
    return found


def _random(
    problem: AlignmentProblem, relaxation: JointRelaxation, generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    """A point between the centre and a random corner."""
    drawn = [
        problem.symmetry.random(int(generator.integers(2**32))).arrays
        for _ in range(len(problem.sources) - 1)
    ]
    corner = relaxation.corner(drawn)
    return between(relaxation.centre(), corner)
