"""The straight-through estimator: latent weights, and the permutation that is nearest to them."""

from __future__ import annotations

from dataclasses import replace

import torch

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.running.batches import Batch, Line
from fxrebasin.solvers.weight_search import WeightSearch


class Estimator:
    """Latent weights and the permutation that is nearest to them.

    Args:
        problem: what is matched.
        arrays: int64 by class name, to start from.
        rate: step size of Adam, as a share of the root mean square of each tensor.
        line: from the reference to the model.
    """

    def __init__(self, problem: MatchingProblem, arrays: Arrays, rate: float, line: Line) -> None:
        self._problem, self._line, self._arrays = problem, line, dict(arrays)
        own = {n: line.state_a[n] for n in problem.weights.names if n in line.state_a}
        self._latent = {n: t.clone() for n, t in own.items() if t.is_floating_point()}
        tensors = list(self._latent.values())
        self._sizes = [rate * max(_root_mean_square(tensor), 1e-12) for tensor in tensors]
        groups = [
            {"params": [tensor], "lr": size}
            for tensor, size in zip(tensors, self._sizes, strict=True)
        ]
        self._adam = torch.optim.Adam(groups) if groups else None
        self._groups = self._adam.param_groups if self._adam is not None else []

    def step(self, batch: Batch, t: float = 0.5) -> None:
        """Move the latent weights by the gradient on one batch, and project them.

        Args:
            batch: of the loader.
            t: position on the line.
        """
        if self._adam is None:
            return
        permuted = self._line.runner.own(self._problem.permuted(self._arrays))
        state = {name: tensor.clone() for name, tensor in permuted.items()}
        leaves = {name: state[name].requires_grad_() for name in self._latent}
        with torch.enable_grad():
            value = self._line.loss({**state, **leaves}, batch, t)
            slopes = self._line.slopes(value, leaves)
        for name, tensor in self._latent.items():
            tensor.grad = slopes[name]
        self._adam.step()
        self._project()

    def turn_down(self, factor: float) -> None:
        """Take smaller steps from now on.

        Args:
            factor: of the step sizes at the start.
        """
        for group, size in zip(self._groups, self._sizes, strict=True):
            group["lr"] = size * factor

    def projection(self) -> dict[str, IntArray]:
        """The nearest permutation of the model."""
        return self._arrays

    def _project(self) -> None:
        """Find the nearest permutation, from the one before."""
        problem = self._problem.weights
        nearest = replace(problem, state_a={**problem.state_a, **self._latent})
        search = WeightSearch(nearest, self._problem.seed, warn=False)
        self._arrays = search.polish(self._arrays).arrays
        if search.interrupted:
            raise KeyboardInterrupt


def _root_mean_square(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
