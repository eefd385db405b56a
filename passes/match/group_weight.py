"""Method "weight" over the groups of a symmetry: Procrustes and assignments, class by class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.annealing import annealed
from fxrebasin.passes.match.balance import Balanced
from fxrebasin.passes.match.effort import Effort
from fxrebasin.passes.match.group_descent import GroupDescent
from fxrebasin.passes.match.group_problem import Element, GroupProblem, GroupResult
from fxrebasin.passes.match.seats import Seats, seats_of
from fxrebasin.passes.match.shaking import shaken
from fxrebasin.passes.match.weight import check_init
from fxrebasin.progress import LateBar
from fxrebasin.solvers.weight_search import Report, WeightSearch, solve_from_evidence

_LEAST_GAIN = 0.95
"""The share of the squared distance of the best permutation that a larger group may leave."""
_ENOUGH = 0.9
"""No further random start is tried once this share of what any element could reach is reached."""


def match_weights_over_groups(
    problem: GroupProblem,
    *,
    max_sweeps: int = 100,
    init: str = "auto",
    restarts: int | None = None,
    budget: float | None = None,
) -> GroupResult:
    """Weight matching over the groups: maximise the sum of inner products of balanced weights.

    Both models are balanced first, so that what may be any invertible matrix becomes orthogonal.
    Then one class after another is decided, the clearest first, each by what is best for it with
    the others as they are: a linear assignment, with signs where units may have either; the polar
    factor of the agreement (orthogonal Procrustes) for matrices; the polar form of a complex number
    for pairs. Heads are assigned by what their dimensions reach together. That goes on until
    nothing is gained. On Ctrl-C the best so far is returned, with a warning.

    Git Re-Basin, arXiv:2209.04836; rotations for merging, arXiv:2502.00264; generalised linear mode
    connectivity, arXiv:2506.22712.

    Args:
        problem: what to match.
        max_sweeps: most sweeps over the classes, at least 1.
        init: `"evidence"` decides one class after another, the clearest first; `"identity"` starts
            from the units and axes as they are; `"both"` takes the better of the two; `"auto"`,
            where matrices mix more than the dimensions of heads, sets out from what is expected of
            all elements at a falling temperature (`fxrebasin.passes.match.annealing`), unless that
            would take more than 2**24 numbers; else it is evidence, and where matrices mix no more
            than heads a descent from the best permutation. Where nothing mixes units that
            permutation is taken unless signs and scales bring the models closer by a twentieth:
            what they gain by chance does not lower barriers.
        restarts: further descents, from the best element so far with a random share of the classes
            permuted and rotated at random. The best result is kept. 0 by default, or with a
            `budget` as many as there is time for.
        budget: seconds after which no further random start is made. How many there is time for
            depends on the machine: give `restarts` alone for a result that can be repeated.

    Raises:
        InputError: an option cannot be used.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(),
        ...                             torch.nn.Linear(5, 3)) for _ in "ab")
        >>> aligned = fxrebasin.match(b, ref=a, symmetry="all", method="weight", restarts=2)
    """
    check_count("max_sweeps", max_sweeps)
    check_init(init)
    effort = Effort.given(restarts, budget, problem.plain.posed)
    balanced = Balanced.of(problem.counted())
    search = _Search(balanced.problem, seats_of(problem), max_sweeps)
    with closing(LateBar()) as report, interruptible():
        for start in _starts(balanced.problem, search.seats, init, report):
            search.descend(start, report)
        search.restart(effort, report)
    found = balanced.back(search.best.element)
    if init == "auto" and not _mixes(problem):
        with closing(LateBar()) as report, interruptible():
            found = _worth_it(problem.counted(), found, max_sweeps, report)
    return GroupResult(found, search.best.sweeps)


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a descent begins.

    Attributes:
        element: that acts first.
        decides: whether classes are decided one after another before the sweeps.
    """

    element: Element
    decides: bool


class _Search:
    """Descents between balanced states, of which the best is kept.

    Args:
        problem: between them.
        seats: of its classes.
        most: sweeps of each.
    """

    def __init__(self, problem: GroupProblem, seats: Seats, most: int) -> None:
        self._problem, self.seats, self._most = problem, seats, most
        self._running = self._best = self._begun(problem.identity())

    @property
    def best(self) -> GroupDescent:
        """The best, also while another one runs."""
        return max((self._best, self._running), key=GroupDescent.agreement)

    def descend(self, start: _Start, report: Report) -> None:
        """Descend from a start.

        Args:
            start: where it begins.
            report: called with the number of sweeps.
        """
        self._running = self._begun(start.element)
        if start.decides:
            self._running.decide()
        self._running.sweep(self._most, report)
        self._best = self.best

    def restart(self, effort: Effort, report: Report) -> None:
        """Descend from random elements around the best, again and again.

        Args:
            effort: how often.
            report: called with the number of sweeps.
        """
        generator = np.random.default_rng([self._problem.seed, 1])
        for count in itertools.count():
            if effort.is_spent(count) or self._best.share() >= _ENOUGH:
                break
            element = shaken(self._problem, self._best.element, generator)
            self.descend(_Start(element, decides=False), report)

    def _begun(self, element: Element) -> GroupDescent:
        problem = self._problem
        current = {**problem.state_b, **problem.moved(element)}
        return GroupDescent(problem, self.seats, problem.state_a, current, element)


def _starts(problem: GroupProblem, seats: Seats, init: str, report: Report) -> Iterator[_Start]:
    """Where descents begin; the best permutation is one such place where it decides of most."""
    streams = init == "auto" and _mixes(problem, alone=True)
    known = annealed(problem, seats, report) if streams else None
    if known is not None:
        yield _Start(known, decides=False)
    elif init != "identity":
        yield _Start(problem.identity(), decides=True)
    if init in ("identity", "both"):
        yield _Start(problem.identity(), decides=False)
    if init == "auto" and not streams:
        plain = problem.plain.weights
        names = [name for name in plain.names if name in problem.state_a]
        rest = replace(plain, state_a=problem.state_a, state_b=problem.state_b, names=names)
        arrays = solve_from_evidence(rest, problem.seed, report).arrays
        yield _Start(Element(problem.plain.permutation(arrays)), decides=False)


def _mixes(problem: GroupProblem, *, alone: bool = False) -> bool:
    """Whether matrices act on any class.

    Args:
        problem: of the classes.
        alone: do not ask of classes inside the units of another one, such as heads.
    """
    classes = (c for c in problem.classes if not (alone and c.within))
    return any(problem.groups.kinds[c.name].kind.has_matrices for c in classes)


def _worth_it(problem: GroupProblem, element: Element, most: int, report: Report) -> Element:
    """An element, or the permutation of the weights as they are if that does about as well.

    Args:
        problem: between states that are not balanced.
        element: of the largest group.
        most: sweeps of the search for the permutation.
        report: called with how far that is.
    """
    search = WeightSearch(problem.plain.weights, problem.seed, report, most_sweeps=most)
    search.start_all(search.usual_starts())
    plain = Element(problem.plain.permutation(search.solution().arrays))
    missing = (_apart(problem, plain), _apart(problem, element))
    return plain if missing[0] * _LEAST_GAIN <= missing[1] else element


def _apart(problem: GroupProblem, element: Element) -> float:
    """The square of the distance that an element leaves."""
    moved = {**problem.state_b, **problem.moved(element)}
    names = problem.compared
    return sum(float((problem.state_a[n] - moved[n]).square().sum()) for n in names)
