"""Some classes matched by balanced weights and what data show, while all others are held."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing

from fxrebasin.interruption import interruptible
from fxrebasin.passes.match.balance import Balanced
from fxrebasin.passes.match.group_descent import GroupDescent
from fxrebasin.passes.match.group_problem import Element
from fxrebasin.passes.match.moments import Moments
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar


def refined(
    balanced: Balanced,
    element: Element,
    names: Collection[str],
    *,
    shown: Mapping[str, Moments] | None = None,
    max_sweeps: int = 100,
) -> Element:
    """An element with some classes matched anew, and all others held.

    Args:
        balanced: what to match.
        element: between balanced states, whose other classes are held.
        names: of the classes that are matched anew: where matrices and factors act, from nothing.
        shown: of these, what data show of the units of some, which decides more than weights.
        max_sweeps: most sweeps over the classes of which data show nothing.

    Returns:
        An element between the states as they were before they were balanced.
    """
    problem = balanced.problem
    held = {name: item for name, item in element.elements.items() if name not in names}
    start = Element(element.permutation, held)
    b = dict(problem.state_b)
    current = {**b, **problem.moved(start, b)}
    seats = seats_of(problem)
    descent = GroupDescent(problem, seats, problem.state_a, current, start, names, shown or {})
    with closing(LateBar()) as report, interruptible():
        descent.decide()
        descent.sweep(max_sweeps, report)
    return balanced.back(descent.element)
