"""Weight matching: the permutation under which the weights of two models agree most."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fxrebasin.indexing import identity_arrays
from fxrebasin.layout import IntArray, Layout, PermutationClass
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.coordinate_descent import Descent, total_agreement
from fxrebasin.solvers.families import make_families, restricted
from fxrebasin.solvers.pairs import Pair, make_pairs
from fxrebasin.solvers.placement import Placement

# No other start is tried once so much of what any order of units could reach is reached.
_ENOUGH = 0.9


@dataclass(frozen=True)
class WeightProblem:
    """What weight matching works on.

    Args:
        classes: the permutation classes.
        layout: where their units are.
        state_a: tensors of the reference.
        state_b: tensors of the model that is permuted.
        names: of the tensors that are compared.
        free: names of the classes that may move.
    """

    classes: tuple[PermutationClass, ...]
    layout: Layout
    state_a: Mapping[str, torch.Tensor]
    state_b: Mapping[str, torch.Tensor]
    names: Collection[str]
    free: Collection[str]


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        arrays: int64 by class name.
        sweeps: over the classes, of the start that was kept.
    """

    arrays: dict[str, IntArray]
    sweeps: int


def solve_weights(
    problem: WeightProblem,
    seed: int,
    most_sweeps: int,
    starts: Sequence[str],
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Solution:
    """Coordinate descent from each start until one comes near what is possible at all.

    On an interrupt (Ctrl-C) the best that is known is returned, with a warning.

    Args:
        problem: what to match.
        seed: for the order in which classes are visited.
        most_sweeps: of each descent.
        starts: `"evidence"` decides one class after the other, each by what is decided already;
            `"identity"` starts from the order that the model has.
        report: called with the stage, how many families are settled and how many there are.

    Returns:
        The solution with the highest objective; the first of equals.
    """
    layout = restricted(problem.layout, problem.classes, problem.free)
    pairs = make_pairs(layout, problem.state_a, problem.state_b, problem.names)
    best: Solution | None = None
    best_value = -np.inf
    for start in starts:
        descent = _descent(problem, pairs, start, report)
        finished = _run(descent, start, seed, most_sweeps)
        value = total_agreement(pairs, descent.placement)
        if best is None or value > best_value + ROUNDING * abs(best_value):
            best, best_value = Solution(dict(descent.placement.arrays), descent.sweeps), value
        if not finished or _is_near_perfect(pairs, value):
            break
    return best or Solution(identity_arrays(problem.classes), 0)


def _descent(
    problem: WeightProblem,
    pairs: Sequence[Pair],
    start: str,
    report: Callable[[str, int, int], None],
) -> Descent:
    """A descent at its start."""
    families = make_families(problem.classes, pairs, problem.free)
    moving = {name for family in families for name in family.members}
    names = [c.name for c in problem.classes]
    known = names if start == "identity" else [name for name in names if name not in moving]
    total = len(families)
    return Descent(
        families,
        Placement(identity_arrays(problem.classes), known),
        lambda waiting: report(start, total - waiting, total),
    )


def _run(descent: Descent, start: str, seed: int, most_sweeps: int) -> bool:
    """Descend; returns whether it went on to the end."""
    try:
        if start != "identity":
            descent.decide()
        descent.descend(np.random.default_rng(seed), most_sweeps)
    except KeyboardInterrupt:
        descent.placement.decide_rest()
        warnings.warn("matching was interrupted: the best permutation so far is used", stacklevel=4)
        return False
    return True


def _is_near_perfect(pairs: Sequence[Pair], value: float) -> bool:
    """Whether the objective is near its bound, apart from what no permutation changes.

    By Cauchy and Schwarz, with the means of the tensors taken off.
    """
    fixed = sum(pair.a.numel() * pair.moments[0] for pair in pairs)
    bound = sum(pair.a.numel() * pair.spread for pair in pairs)
    return value - fixed >= _ENOUGH * bound
