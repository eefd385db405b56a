"""Method "weight" over the groups of a symmetry: Procrustes and assignments, class by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.group_descent import GroupDescent
from fxrebasin.passes.match.group_problem import Element, GroupProblem, GroupResult
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar
from fxrebasin.solvers.weight_search import Report, solve_from_evidence

State: TypeAlias = Mapping[str, Tensor]


def match_weights_over_groups(problem: GroupProblem, *, max_sweeps: int = 100) -> GroupResult:
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

    Raises:
        InputError: an option cannot be used.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(),
        ...                             torch.nn.Linear(5, 3)) for _ in "ab")
        >>> aligned = fxrebasin.match(b, ref=a, symmetry="all", method="weight")
    """
    check_count("max_sweeps", max_sweeps)
    problem = problem.counted()
    seats = seats_of(problem)
    to_a, to_b = (balanced(problem, seats, s) for s in (problem.state_a, problem.state_b))
    a, b = problem.moved(to_a, problem.state_a), problem.moved(to_b)
    tried: list[GroupDescent] = []
    with closing(LateBar()) as report, interruptible():
        for start in _starts(problem, a, b, report):
            moved = problem.moved(start.element, b)
            descent = GroupDescent(problem, seats, a, {**b, **moved}, start.element)
            tried.append(descent)
            if start.decides:
                descent.decide()
            descent.sweep(max_sweeps, report)
    found = max(tried, key=GroupDescent.agreement)
    back = problem.inverse(to_a)
    element = problem.combined(back, problem.combined(found.element, to_b))
    return GroupResult(element, found.sweeps)


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a descent begins.

    Attributes:
        element: that acts first.
        decides: whether classes are decided one after another before the sweeps.
    """

    element: Element
    decides: bool


def _starts(problem: GroupProblem, a: State, b: State, report: Report) -> Iterator[_Start]:
    """What is decided by evidence; where nothing mixes units, also the best permutation."""
    yield _Start(problem.identity(), decides=True)
    if not any(problem.groups.kinds[c.name].kind.has_matrices for c in problem.classes):
        plain = problem.plain.weights
        names = [name for name in plain.names if name in a]
        rest = replace(plain, state_a=a, state_b=b, names=names)
        arrays = solve_from_evidence(rest, problem.seed, report).arrays
        yield _Start(Element(problem.plain.permutation(arrays)), decides=False)
