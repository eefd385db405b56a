"""Method "sinkhorn": soft permutations that follow a gradient, of the weights or of a loss."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch

from fxrebasin.errors import InputError
from fxrebasin.indexing import identity_arrays
from fxrebasin.interruption import interruptible
from fxrebasin.layout import IntArray
from fxrebasin.options import check_count, check_positive
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.passes.match.training import Training, check_epochs, trained
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Line, Loss
from fxrebasin.solvers.pairs import folded, unfolded
from fxrebasin.solvers.relaxed import Maps, Relaxation, mixed
from fxrebasin.solvers.sinkhorn import SinkhornAscent
from fxrebasin.solvers.weight_search import Report, WeightSearch
from fxrebasin.wording import spoken


def match_sinkhorn(
    problem: MatchingProblem,
    *,
    loader: Iterable[Any] | None = None,
    loss: Loss | None = None,
    steps: int = 50,
    rate: float = 0.5,
    epochs: int = 5,
    max_batches: int | None = None,
) -> MatchResult:
    """Sinkhorn re-basin: gradient steps on soft permutations, which are projected at the end.

    Peña et al., CVPR 2023, arXiv:2212.12042. A doubly stochastic matrix for every class (and every
    pair of copies, for classes within others) is made of free numbers by Sinkhorn's algorithm;
    Adam moves those, from where nothing is decided.

    Without `loader` and `loss` the objective is the agreement of the weights (the paper's L2 cost).
    The soft permutations are projected by linear assignment, outer classes first, and coordinate
    descent goes on from there. With both, it is the loss at a random point of the line between the
    reference and the softly permuted model (the paper's random cost); of the present order and the
    projections after each epoch, the one with the lowest mean loss at the midpoint is returned
    unchanged. BatchNorm uses the statistics of the batch in this case. A soft permutation is never
    returned. On Ctrl-C the best permutation so far is returned, with a warning.

    Args:
        problem: what to match; its seed decides the points on the line, the order of a shuffling
            loader, and that of coordinate descent.
        loader: as for `"straight_through"`.
        loss: of outputs and targets, differentiable; lower is better.
        steps: number of steps on the weights; not used with a loss.
        rate: step size of Adam.
        epochs: number of times that the loader is gone through; not used without one.
        max_batches: of each epoch; all when left out.

    Raises:
        InputError: an option cannot be used, or one of `loader` and `loss` is missing, or the
            model does not run on a batch, or the loss is not a finite number.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> p = fxrebasin.match(b, ref=a, method="sinkhorn")
    """
    check_count("steps", steps)
    check_positive("rate", rate)
    check_epochs(epochs, max_batches)
    training = _training(loader, loss, epochs, max_batches)
    ascent = SinkhornAscent(Relaxation(problem.weights), rate)
    with closing(LateBar()) as report:
        if training is None:
            arrays = _on_weights(problem, ascent, steps, report)
            return problem.result(problem.permutation(arrays), steps)
        start = identity_arrays(problem.symmetry.classes)
        make = partial(_Learner, problem, ascent)
        arrays, _ = trained(problem, training, start, make, report)
    return problem.result(problem.permutation(arrays), epochs)


def _training(
    loader: Iterable[Any] | None, loss: Loss | None, epochs: int, max_batches: int | None
) -> Training | None:
    """What to learn from; None to match weights."""
    if loader is not None and loss is not None:
        return Training(loader, loss, epochs, max_batches)
    if loader is None and loss is None:
        return None
    missing = "a loader" if loader is None else "a loss"
    raise InputError(
        f"method 'sinkhorn' needs {missing} as well: pass {spoken('loader=...', '--data')}, an "
        f"iterable of (inputs, targets), and {spoken('loss=...', '--loss')}, a function of "
        "(outputs, targets); or neither, to match weights"
    )


def _on_weights(
    problem: MatchingProblem, ascent: SinkhornAscent, steps: int, report: Report
) -> dict[str, IntArray]:
    """Raise the agreement of the weights, project and polish."""
    relaxation = ascent.relaxation
    search = WeightSearch(problem.weights, problem.seed, report)
    with interruptible():
        for k in range(steps):
            ascent.step(relaxation.gradient)
            report("sinkhorn", k + 1, steps)
        search.polish(relaxation.rounded(ascent.maps()))
    if search.best is None:
        search.offer(identity_arrays(problem.symmetry.classes))
        search.offer(relaxation.rounded(ascent.maps()))
    return search.solution().arrays


class _Learner:
    """Soft permutations that follow the gradient of a loss."""

    def __init__(self, problem: MatchingProblem, ascent: SinkhornAscent, line: Line) -> None:
        self._problem, self._ascent, self._line = problem, ascent, line
        self._generator = np.random.default_rng([problem.seed, 3])
        self._state_b = line.runner.own(problem.state_b)

    def step(self, batch: Batch) -> None:
        """One step, with the loss at a random point of the line."""
        t = float(self._generator.uniform())
        self._ascent.step(partial(self._slopes, batch, t))

    def projection(self) -> dict[str, IntArray]:
        """The permutations that agree most with the soft ones."""
        return self._ascent.relaxation.rounded(self._ascent.maps())

    def _slopes(self, batch: Batch, t: float, maps: Maps) -> tuple[float, Maps]:
        """Minus the loss, and its derivatives."""
        with torch.enable_grad():
            leaves = {name: m.detach().requires_grad_() for name, m in maps.items()}
            value = -self._line.loss(self._soft(leaves), batch, t)
            return float(value.detach()), self._line.slopes(value, leaves)

    def _soft(self, maps: Maps) -> dict[str, torch.Tensor]:
        """The weights of the model under soft permutations."""
        state = dict(self._state_b)
        complete = self._ascent.relaxation.completed(maps)
        for name, groups in self._problem.symmetry.layout.items():
            tensor = state.get(name)
            if tensor is not None and tensor.is_floating_point() and groups:
                wide = unfolded(self._ascent.relaxation.cast(tensor), groups)
                soft = folded(mixed(wide, groups, complete), groups, tensor.shape)
                state[name] = soft.to(tensor)
        return state
