"""Some classes matched by balanced weights, while all others are held."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from fxrebasin.interruption import interruptible
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.group_descent import GroupDescent
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar


def refined(
    problem: GroupProblem, element: Element, names: Collection[str], *, max_sweeps: int = 100
) -> Element:
    """An element with some classes matched by balanced weights, and all others held.

    Args:
        problem: what to match.
        element: whose other classes are held.
        names: of the classes that are matched anew: where matrices and factors act, from nothing.
        max_sweeps: most sweeps over them.
    """
    seats = seats_of(problem)
    to_a, to_b = (balanced(problem, seats, s) for s in (problem.state_a, problem.state_b))
    a, b = problem.moved(to_a, problem.state_a), problem.moved(to_b)
    start = problem.combined(to_a, problem.combined(element, problem.inverse(to_b)))
    held = {name: item for name, item in start.elements.items() if name not in names}
    start = Element(start.permutation, held)
    current = {**b, **problem.moved(start, b)}
    descent = GroupDescent(problem, seats, a, current, start, names)
    with closing(LateBar()) as report, interruptible():
        descent.decide()
        descent.sweep(max_sweeps, report)
    return problem.combined(problem.inverse(to_a), problem.combined(descent.element, to_b))
