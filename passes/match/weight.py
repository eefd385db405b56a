"""Method "weight": coordinate descent on the agreement of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from contextlib import closing

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.passes.match.problem import (
    HasSymmetry,
    LateBar,
    Matching,
    MatchResult,
    check_count,
    check_positive,
)
from fxrebasin.solvers.weight import Start, WeightSearch

_STARTS = {
    "auto": None,
    "both": (Start.EVIDENCE, Start.IDENTITY),
    "evidence": (Start.EVIDENCE,),
    "identity": (Start.IDENTITY,),
}


def match_weights(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    match_buffers: bool = False,
    max_sweeps: int = 100,
    init: str = "auto",
    classes: Collection[str] | None = None,
    restarts: int | None = None,
    budget: float | None = None,
) -> MatchResult:
    """Weight matching: maximise the sum of inner products of the weights (arXiv:2209.04836).

    Coordinate descent over the classes, each solved exactly as a linear assignment; classes within
    others (units within heads, channels within groups) are solved together with the outer one.
    Computes in float32, or float64 for float64 tensors. On Ctrl-C the best permutation so far is
    returned, with a warning.

    Args:
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: for the order in which classes are visited.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        match_buffers: compare buffers (running statistics) as well.
        max_sweeps: over the classes, at least 1.
        init: `"evidence"` decides one class after another, the clearest first, each from what is
            already decided; `"identity"` starts from the present order; `"both"` takes the better
            of the two, and leaves the second out where it could not be much better; `"auto"` is
            both for small models (up to a million weights), otherwise evidence, which has been
            ahead on every large model tried.
        classes: names of the only classes that may move; all when left out.
        restarts: descents from random starts after that: the best order so far with a random share
            of the classes shuffled. The best result is kept. 0 by default, or with a `budget` as
            many as there is time for.
        budget: seconds after which no further random start is made. How many fit is up to the
            machine: give `restarts` alone for a result that can be repeated.
        model: not needed.

    Raises:
        InputError: an option cannot be used, or a tensor has no values (it is on the meta device)
            or values that are not finite.
        ArchitectureMismatchError: tensors are missing or differ in shape.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> p = fxrebasin.match(b, ref=a, method="weight", restarts=2)
    """
    began = time.perf_counter()
    check_count("max_sweeps", max_sweeps)
    if init not in _STARTS:
        raise InputError(f"no start {init!r}; init is one of: {', '.join(_STARTS)}")
    times, deadline = check_effort(restarts, budget, began)
    names = None if match_buffers else parameters
    matching = Matching(symmetry, state_b, state_a, names, classes)
    with closing(LateBar()) as report:
        search = WeightSearch(matching.problem, seed, max_sweeps, report, deadline)
        starts = _STARTS[init]
        search.start_all(search.usual_starts() if starts is None else starts)
        search.restart(times)
    solution = search.solution()
    return matching.result(matching.permutation(solution.arrays), solution.sweeps)


def check_effort(
    restarts: int | None, budget: float | None, began: float
) -> tuple[int | None, float]:
    """How many restarts to make at most (None for no limit), and until when.

    Args:
        restarts: as given by the caller.
        budget: seconds, as given by the caller.
        began: when matching began, on the clock of `time.perf_counter`.

    Raises:
        InputError: one of them cannot be used.
    """
    if restarts is not None:
        check_count("restarts", restarts, 0)
    if budget is None:
        return restarts or 0, math.inf
    check_positive("budget", budget)
    return restarts, began + budget
