"""Method "straight_through": the permutation whose midpoint with the reference has a low loss."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

from fxrebasin.options import check_positive
from fxrebasin.passes.match.estimator import Estimator
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.passes.match.training import Training, trained
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Loss
from fxrebasin.solvers.weight_search import WeightSearch


def match_straight_through(
    problem: MatchingProblem,
    *,
    loader: Iterable[Any],
    loss: Loss,
    epochs: int = 5,
    rate: float = 0.01,
    max_batches: int | None = None,
) -> MatchResult:
    """Straight-through estimator: learn the permutation by gradients of the midpoint's loss.

    Git Re-Basin, arXiv:2209.04836, section 3.3 and algorithm 2. Latent weights start at those of
    the reference. In every step they are projected to the nearest permutation of the model, by
    coordinate descent from the projection before; the loss of the midpoint between the reference
    and that permutation is taken on a batch, and its gradient moves the latent weights as if there
    had been no projection (with Adam). The first projection is what `"weight"` finds; of it and
    the projections after each epoch, the one with the lowest mean loss is returned, which costs
    another pass over the loader per epoch. BatchNorm uses the statistics of the batch in all of
    this. On Ctrl-C the best permutation so far is returned, with a warning.

    Args:
        problem: what to match; its seed decides the order of a shuffling loader, and that of
            coordinate descent.
        loader: an iterable of batches that can be gone through repeatedly: `(inputs, targets)`, or
            inputs alone, for which the targets are None. Inputs are a tensor, a tuple of
            positional inputs, or a dict by keyword.
        loss: of outputs and targets, differentiable; lower is better.
        epochs: number of times that the loader is gone through.
        rate: step size of Adam, as a share of the root mean square of each tensor.
        max_batches: of each epoch; all when left out.

    Raises:
        InputError: an option cannot be used, the model does not run on a batch, or the loss is not
            a finite number.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [(torch.randn(16, 2), torch.randint(3, (16,))) for _ in range(3)]
        >>> loss = torch.nn.functional.cross_entropy
        >>> p = fxrebasin.match(b, a, method="straight_through", loader=data, loss=loss)
    """
    check_positive("rate", rate)
    training = Training(loader, loss, epochs, max_batches)
    with closing(LateBar()) as report:
        search = WeightSearch(problem.weights, problem.seed, report)
        search.start_all(search.usual_starts())
        arrays, steps = search.solution().arrays, 0
        if not search.interrupted:
            make = partial(Estimator, problem, arrays, rate)
            arrays, steps = trained(problem, training, arrays, make, report)
    return problem.result(problem.permutation(arrays), steps)
