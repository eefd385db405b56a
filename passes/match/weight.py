"""Method "weight": coordinate descent on the agreement of the weights."""

from __future__ import annotations

from contextlib import closing

from fxrebasin.errors import InputError
from fxrebasin.options import check_count
from fxrebasin.passes.match.effort import Effort
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.progress import LateBar
from fxrebasin.solvers.weight_search import Start, WeightSearch

_STARTS = {
    "auto": None,
    "both": (Start.EVIDENCE, Start.IDENTITY),
    "evidence": (Start.EVIDENCE,),
    "identity": (Start.IDENTITY,),
}


def match_weights(
    problem: MatchingProblem,
    *,
    match_buffers: bool = False,
    max_sweeps: int = 100,
    init: str = "auto",
    restarts: int | None = None,
    budget: float | None = None,
) -> MatchResult:
    """Weight matching: maximise the sum of inner products of the weights (arXiv:2209.04836).

    Coordinate descent over the classes, each solved exactly as a linear assignment; classes within
    others (units within heads, channels within groups) are solved together with the outer one.
    Computes in float32, or float64 for float64 tensors. On Ctrl-C the best permutation so far is
    returned, with a warning.

    Args:
        problem: what to match; its seed decides the order in which classes are visited.
        match_buffers: compare buffers (running statistics) as well.
        max_sweeps: most sweeps over the classes, at least 1.
        init: `"evidence"` decides one class after another, the clearest first, each from what is
            already decided; `"identity"` starts from the present order; `"both"` takes the better
            of the two, and leaves the second out where it could not be much better; `"auto"` is
            both for small models (up to a million weights), otherwise evidence, which has been
            ahead on every large model tried.
        restarts: further descents, from random starts: the best order so far with a random share
            of the classes shuffled. The best result is kept. 0 by default, or with a `budget` as
            many as there is time for.
        budget: seconds after which no further random start is made. How many there is time for
            depends on the machine: give `restarts` alone for a result that can be repeated.

    Raises:
        InputError: an option cannot be used.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> p = fxrebasin.match(b, ref=a, method="weight", restarts=2)
    """
    check_count("max_sweeps", max_sweeps)
    check_init(init)
    effort = Effort.given(restarts, budget, problem.posed)
    problem = problem.with_buffers() if match_buffers else problem
    with closing(LateBar()) as report:
        search = WeightSearch(problem.weights, problem.seed, report, most_sweeps=max_sweeps)
        starts = _STARTS[init]
        search.start_all(search.usual_starts() if starts is None else starts)
        search.restart(effort.is_spent)
    solution = search.solution()
    return problem.result(problem.permutation(solution.arrays), solution.sweeps)


def check_init(init: object) -> None:
    """Refuse what no descent can start from.

    Args:
        init: of the caller.

    Raises:
        InputError: there is no such start.
    """
    if init not in _STARTS:
        raise InputError(f"no start {init!r}; init is one of: {', '.join(_STARTS)}")
