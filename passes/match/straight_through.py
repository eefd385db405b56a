"""Method "straight_through": the permutation whose midpoint with the reference has a low loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import nn

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray
from fxrebasin.passes.match.problem import (
    HasSymmetry,
    LateBar,
    Matching,
    MatchResult,
    check_count,
    check_positive,
    interruptible,
)
from fxrebasin.running.batches import Batch, Line, Loss, check_loader, runner
from fxrebasin.solvers.weight import Report, WeightProblem, WeightSearch

_MOST_SWEEPS = 100


def match_straight_through(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    loader: Iterable[Any],
    loss: Loss,
    epochs: int = 5,
    rate: float = 0.01,
    max_batches: int | None = None,
    classes: Collection[str] | None = None,
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
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: of torch's generator while the loader runs, and for coordinate descent.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        model: what is run, in eval mode but for BatchNorm.
        loader: an iterable of batches that can be gone through repeatedly: `(inputs, targets)`, or
            inputs alone, for which the targets are None. Inputs are a tensor, a tuple of
            positional inputs, or a dict by keyword.
        loss: of outputs and targets, differentiable; lower is better.
        epochs: times that the loader is gone through.
        rate: step size of Adam, as a share of the root mean square of each tensor.
        max_batches: of each epoch; all when left out.
        classes: names of the only classes that may move; all when left out.

    Raises:
        InputError: an option cannot be used, the model does not run on a batch, or the loss is not
            a finite number.
        ArchitectureMismatchError: tensors are missing or differ in shape.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [(torch.randn(16, 2), torch.randint(3, (16,))) for _ in range(3)]
        >>> loss = torch.nn.functional.cross_entropy
        >>> p = fxrebasin.match(b, a, method="straight_through", loader=data, loss=loss)
    """
    check_count("epochs", epochs)
    check_positive("rate", rate)
    if max_batches is not None:
        check_count("max_batches", max_batches)
    check_loader(loader)
    matching = Matching(symmetry, state_b, state_a, parameters, classes)
    with closing(LateBar()) as report:
        search = WeightSearch(matching.problem, seed, _MOST_SWEEPS, report)
        search.start_all(search.usual_starts())
        best = Best(search.solution().arrays)
        steps = 0
        if not search.interrupted:
            with interruptible(), runner(model, seed) as running:
                line = Line(running, state_a, loss)
                estimator = _Estimator(matching, line, best.arrays, seed, rate, report)
                best.offer(best.arrays, estimator.mean_loss(loader, max_batches))
                for epoch in range(epochs):
                    for batch in running.batches(loader, max_batches):
                        estimator.step(batch)
                        steps += 1
                        report(f"epoch {epoch + 1} of {epochs}", batch.number + 1, max_batches)
                    if best.is_new(estimator.arrays):
                        best.offer(estimator.arrays, estimator.mean_loss(loader, max_batches))
    return matching.result(matching.permutation(best.arrays), steps)


class Best:
    """The permutations with the lowest loss.

    Args:
        arrays: int64 by class name, the permutations until a loss is known.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays: dict[str, IntArray] = dict(arrays)
        self._loss = math.inf

    def is_new(self, arrays: Arrays) -> bool:
        """Whether these differ from the best.

        Args:
            arrays: int64 by class name.
        """
        return any((array != self.arrays[name]).any() for name, array in arrays.items())

    def offer(self, arrays: Arrays, loss: float) -> None:
        """Keep permutations if their loss is the lowest.

        Args:
            arrays: int64 by class name.
            loss: of these.
        """
        if loss < self._loss:
            self.arrays, self._loss = dict(arrays), loss


class _Estimator:
    """Latent weights and the permutation that is nearest to them."""

    def __init__(
        self,
        matching: Matching,
        line: Line,
        arrays: Arrays,
        seed: int,
        rate: float,
        report: Report,
    ) -> None:
        self.arrays = dict(arrays)
        self._matching, self._line, self._seed, self._report = matching, line, seed, report
        problem = matching.problem
        own = {n: line.state_a[n] for n in problem.names if n in line.state_a}
        self._latent = {n: t.clone() for n, t in own.items() if t.is_floating_point()}
        groups = [
            {"params": [tensor], "lr": rate * max(_root_mean_square(tensor), 1e-12)}
            for tensor in self._latent.values()
        ]
        self._adam = torch.optim.Adam(groups) if groups else None

    def mean_loss(self, loader: Iterable[Any], most: int | None) -> float:
        """Of the midpoint, over a loader."""
        return self._line.mean_loss(self._permuted(), loader, most)

    def step(self, batch: Batch) -> None:
        """Move the latent weights by the gradient on one batch, and project them."""
        if self._adam is None:
            return
        state = self._permuted()
        leaves = {name: state[name].requires_grad_() for name in self._latent}
        with torch.enable_grad():
            value = self._line.loss({**state, **leaves}, batch)
            slopes = self._line.slopes(value, leaves)
        for name, tensor in self._latent.items():
            tensor.grad = slopes[name]
        self._adam.step()
        self._project()

    def _project(self) -> None:
        """The nearest permutation of the model, from the one before."""
        problem = self._matching.problem
        nearest = WeightProblem(
            problem.classes,
            problem.layout,
            {**problem.state_a, **self._latent},
            problem.state_b,
            problem.names,
            problem.free,
        )
        search = WeightSearch(nearest, self._seed, _MOST_SWEEPS, warn=False)
        self.arrays = search.polish(self.arrays).arrays
        if search.interrupted:
            raise KeyboardInterrupt

    def _permuted(self) -> dict[str, torch.Tensor]:
        """The weights of the model as the permutation has them."""
        permutation = self._matching.permutation(self.arrays)
        state = permutation.permute_state_dict(self._matching.state_b)
        return {n: t.clone() for n, t in self._line.runner.own(state).items()}


def _root_mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
