"""The search for the permutation under which the weights of two models agree most."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np

from fxrebasin.errors import FxRebasinWarning
from fxrebasin.indexing import Arrays, identity_arrays
from fxrebasin.interruption import MATCHING_INTERRUPTED
from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.coordinate_descent import CoordinateDescent, total_agreement
from fxrebasin.solvers.families import make_families, restricted
from fxrebasin.solvers.pairs import Pair, joined, make_pairs
from fxrebasin.solvers.placement import Placement
from fxrebasin.solvers.weight_problem import WeightProblem

Report: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a stage, how many of its steps are done, and how many it has, if that is known."""

# On small models one start may beat the other by chance, and a second one takes no time.
_SMALL = 2**20
# No further start is tried once this share of what any order of units could reach is reached.
_ENOUGH = 0.9


class Start(Enum):
    """Where a descent begins; the values name the starts in progress reports."""

    EVIDENCE = "evidence"
    """One class is decided after another, each from the classes decided before it."""
    IDENTITY = "identity"
    """All units are where the model has them."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        arrays: int64 by class name.
        sweeps: over the classes, of the start that was kept.
    """

    arrays: dict[str, IntArray]
    sweeps: int


class WeightSearch:
    """Coordinate descents on one problem; the best result is kept.

    Args:
        problem: what to match.
        seed: for the order in which classes are visited, and for random starts.
        report: called with the stage, how many families are settled and how many there are.
        most_sweeps: of each descent.
        warn: whether to warn of an interrupt; a caller that searches repeatedly warns by itself.
    """

    def __init__(
        self,
        problem: WeightProblem,
        seed: int,
        report: Report = lambda stage, done, total: None,
        *,
        most_sweeps: int = 100,
        warn: bool = True,
    ) -> None:
        self.problem = problem
        self.best: Solution | None = None
        self._value: float | None = None
        self.interrupted = False
        self._seed, self._most_sweeps = seed, most_sweeps
        self._report, self._warn = report, warn
        layout = restricted(problem.layout, problem.classes, problem.free)
        self.pairs = joined(make_pairs(layout, problem.state_a, problem.state_b, problem.names))

    def usual_starts(self) -> tuple[Start, ...]:
        """The starts that are worth their time: both on small models, otherwise evidence."""
        elements = sum(self.problem.state_b[name].numel() for name in self.problem.names)
        return (Start.EVIDENCE, Start.IDENTITY) if elements <= _SMALL else (Start.EVIDENCE,)

    def start(self, start: Start) -> None:
        """Descend from a start.

        Args:
            start: where the descent begins.
        """
        arrays = identity_arrays(self.problem.classes)
        self._run(f"matching from {start.value}", arrays, decide=start is Start.EVIDENCE)

    def start_all(self, starts: Sequence[Start]) -> None:
        """Descend from each start until the result is close to the best possible.

        Args:
            starts: in the order in which they are tried.
        """
        for start in starts:
            if self.interrupted or (self.best is not None and self.is_near_perfect()):
                break
            self.start(start)

    def polish(self, arrays: Arrays, stage: str = "polishing") -> Solution:
        """Descend from given permutations; returns where that leads, which may not be the best.

        Args:
            arrays: int64 by class name, of all classes.
            stage: for the report.
        """
        return self._run(stage, arrays, decide=False)

    def offer(self, arrays: Arrays) -> None:
        """Keep permutations as they are if they are the best.

        Args:
            arrays: int64 by class name, of all classes.
        """
        self._kept(Placement(arrays, list(arrays)), 0)

    def restart(self, is_enough: Callable[[int], bool]) -> None:
        """Descend from the best result with some families put in random order, again and again.

        Args:
            is_enough: from the number of such descents to whether no further one is wanted.
        """
        generator = np.random.default_rng([self._seed, 1])
        for k in itertools.count():
            if is_enough(k) or self.interrupted or self.is_near_perfect():
                break
            self._run(f"matching from random start {k + 1}", self._shaken(generator), decide=False)

    def solution(self) -> Solution:
        """The best that was found; the identity if nothing was."""
        return self.best or Solution(identity_arrays(self.problem.classes), 0)

    def _shaken(self, generator: np.random.Generator) -> dict[str, IntArray]:
        """The best arrays, with a random share of the families shuffled."""
        best = self.solution().arrays
        share = generator.uniform(0.1, 1.0)
        roots = {c.name for c in self.problem.classes if not c.within}
        shaken = {name for name in sorted(roots) if generator.random() < share}
        return {
            c.name: generator.permuted(best[c.name], axis=-1)
            if c.name in self.problem.free and not shaken.isdisjoint({c.name, *c.within})
            else best[c.name]
            for c in self.problem.classes
        }

    def _run(self, stage: str, arrays: Arrays, decide: bool) -> Solution:
        """Descend, and keep the result if it is the best."""
        descent = self._descent(stage, arrays, decide)
        try:
            if decide:
                descent.decide()
            descent.descend(np.random.default_rng(self._seed), self._most_sweeps)
        except KeyboardInterrupt:
            descent.placement.decide_rest()
            self.interrupted = True
            if self._warn:
                warnings.warn(MATCHING_INTERRUPTED, category=FxRebasinWarning, stacklevel=4)
        return self._kept(descent.placement, descent.sweeps)

    def _kept(self, placement: Placement, sweeps: int) -> Solution:
        """A solution, which is kept if it is the best."""
        solution = Solution(dict(placement.arrays), sweeps)
        if self.best is None:
            self.best, self._value = solution, None
            return solution
        value = total_agreement(self.pairs, placement)
        if value > self.value + ROUNDING * abs(self.value):
            self.best, self._value = solution, value
        return solution

    @property
    def value(self) -> float:
        """The objective of the best; it is computed when it is first asked for."""
        if self._value is None:
            arrays = self.solution().arrays
            self._value = total_agreement(self.pairs, Placement(arrays, list(arrays)))
        return self._value

    def _descent(self, stage: str, arrays: Arrays, decide: bool) -> CoordinateDescent:
        """A descent at its start."""
        problem = self.problem
        families = make_families(problem.classes, self.pairs, problem.free)
        moving = {name for family in families for name in family.members}
        names = [c.name for c in problem.classes]
        known = [name for name in names if name not in moving] if decide else names
        total = len(families)
        return CoordinateDescent(
            families,
            Placement(arrays, known),
            lambda waiting: self._report(stage, total - waiting, total),
        )

    def is_near_perfect(self) -> bool:
        """Whether no other start could find much more."""
        return _is_near_perfect(self.pairs, self.value)


def solve_from_evidence(problem: WeightProblem, seed: int, report: Report) -> Solution:
    """One descent, which decides the classes by the evidence of those decided before.

    On an interrupt (Ctrl-C) the best solution so far is returned, with a warning.

    Args:
        problem: what to match.
        seed: for the order in which classes are visited.
        report: called with the stage, how many families are settled and how many there are.
    """
    search = WeightSearch(problem, seed, report)
    search.start(Start.EVIDENCE)
    return search.solution()


def _is_near_perfect(pairs: Sequence[Pair], value: float) -> bool:
    """Whether the objective is near its bound, apart from what no permutation changes."""
    fixed = sum(pair.reach[0] for pair in pairs)
    more = sum(pair.reach[1] for pair in pairs)
    return value - fixed >= _ENOUGH * more
