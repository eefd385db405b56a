"""Method "activation": units that react in the same way to the same data belong together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.correlating import Collector, concluded
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import runner


def match_activations(
    problem: MatchingProblem, *, loader: Iterable[Any], max_batches: int | None = None
) -> MatchResult:
    """Activation matching: pair the units whose activations correlate most over some data.

    Li et al. 2015, arXiv:1511.07543; Git Re-Basin, arXiv:2209.04836, section 3.1, with correlations
    instead of inner products, since a unit stays the same unit at another scale.

    Both models run on the same batches. Where tensors are ignored, because the reference has
    others, it runs with those: a module by its own code, weights by that of the model. Where it has
    none it runs with the model's, and outputs that these have a part in do not count.

    The outputs of modules that show the units of a class are found by experiment (see
    `fxrebasin.passes.match.representatives`); their correlations are summed over all of these
    modules. Only sums are kept: memory is for one batch of outputs and n²
    numbers for n units. Classes within others are solved together with the outer one. Classes that
    no module's output shows (those inside `nn.MultiheadAttention`) are matched by weights, with the
    others held; the notes of the result name them. On Ctrl-C the batches so far count, with a
    warning.

    Args:
        problem: what to match; its seed decides the order of a shuffling loader, and the search
            for classes that are matched by weights.
        loader: any iterable of batches, `(inputs, targets)` or inputs alone, whose targets are not
            used. Inputs are a tensor, a tuple of positional inputs, or a dict by keyword. It is
            gone through once.
        max_batches: how many batches to use; all when left out.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [torch.randn(16, 2) for _ in range(3)]
        >>> p = fxrebasin.match(b, ref=a, method="activation", loader=data)
    """
    if max_batches is not None:
        check_count("max_batches", max_batches)
    collector = Collector(problem)
    finished = False
    with closing(LateBar()) as report:
        with interruptible(), runner(problem.model, problem.seed) as running:
            collector.collect(running, loader, max_batches, report)
            finished = True
        return concluded(problem, collector, finished, report)
