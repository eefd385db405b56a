"""Method "sinkhorn": soft permutations that follow a gradient, of the weights or of a loss."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.indexing import identity_arrays
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
from fxrebasin.passes.match.straight_through import Best
from fxrebasin.running.batches import Batch, Line, Loss, check_loader, runner
from fxrebasin.solvers.pairs import folded, unfolded
from fxrebasin.solvers.relaxed import Maps, Relaxation, mixed
from fxrebasin.solvers.sinkhorn import SinkhornAscent
from fxrebasin.solvers.weight import Report, WeightSearch

_MOST_SWEEPS = 100


def match_sinkhorn(
    symmetry: HasSymmetry,
    state_b: Mapping[str, torch.Tensor],
    state_a: Mapping[str, torch.Tensor],
    *,
    seed: int = 0,
    parameters: Collection[str] | None = None,
    model: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    loss: Loss | None = None,
    steps: int = 50,
    rate: float = 0.5,
    epochs: int = 5,
    max_batches: int | None = None,
    classes: Collection[str] | None = None,
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
        symmetry: classes and layout.
        state_b: state tensors of the model to permute, by name.
        state_a: state tensors of the reference, of the same shapes.
        seed: for the points on the line, of torch's generator while the loader runs, and for
            coordinate descent.
        parameters: names of the state tensors that are parameters; all tensors when left out.
        model: what is run with a loss.
        loader: as for `"straight_through"`.
        loss: of outputs and targets, differentiable; lower is better.
        steps: on the weights; not used with a loss.
        rate: step size of Adam.
        epochs: times that the loader is gone through; not used without one.
        max_batches: of each epoch; all when left out.
        classes: names of the only classes that may move; all when left out.

    Raises:
        InputError: an option cannot be used, or one of `loader` and `loss` is missing, or the
            model does not run on a batch, or the loss is not a finite number.
        ArchitectureMismatchError: tensors are missing or differ in shape.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> p = fxrebasin.match(b, ref=a, method="sinkhorn")
    """
    check_count("steps", steps)
    check_count("epochs", epochs)
    check_positive("rate", rate)
    if max_batches is not None:
        check_count("max_batches", max_batches)
    _check_data(loader, loss)
    matching = Matching(symmetry, state_b, state_a, parameters, classes)
    ascent = SinkhornAscent(Relaxation(matching.problem), rate)
    with closing(LateBar()) as report:
        if loader is None or loss is None:
            arrays = _on_weights(matching, ascent, seed, steps, report)
            return matching.result(matching.permutation(arrays), steps)
        best = Best(identity_arrays(symmetry.classes))
        with interruptible(), runner(model, seed) as running:
            learner = _Learner(matching, ascent, Line(running, state_a, loss), seed)
            best.offer(best.arrays, learner.mean_loss(best.arrays, loader, max_batches))
            for epoch in range(epochs):
                for batch in running.batches(loader, max_batches):
                    learner.step(batch)
                    report(f"epoch {epoch + 1} of {epochs}", batch.number + 1, max_batches)
                arrays = learner.rounded()
                if best.is_new(arrays):
                    best.offer(arrays, learner.mean_loss(arrays, loader, max_batches))
    return matching.result(matching.permutation(best.arrays), epochs)


def _check_data(loader: Iterable[Any] | None, loss: Loss | None) -> None:
    if (loader is None) != (loss is None):
        missing = "a loader" if loader is None else "a loss"
        raise InputError(
            f"method 'sinkhorn' needs {missing} as well: pass loader=..., an iterable of (inputs, "
            "targets), and loss=..., a function of (outputs, targets); or neither, to match weights"
        )
    if loader is not None:
        check_loader(loader)


def _on_weights(
    matching: Matching, ascent: SinkhornAscent, seed: int, steps: int, report: Report
) -> dict[str, IntArray]:
    """Raise the agreement of the weights, project and polish."""
    relaxation = ascent.relaxation
    search = WeightSearch(matching.problem, seed, _MOST_SWEEPS, report)
    with interruptible():
        for k in range(steps):
            ascent.step(relaxation.gradient)
            report("sinkhorn", k + 1, steps)
        search.polish(relaxation.rounded(ascent.maps()))
    if search.best is None:
        search.offer(identity_arrays(matching.symmetry.classes))
        search.offer(relaxation.rounded(ascent.maps()))
    return search.solution().arrays


class _Learner:
    """Soft permutations that follow the gradient of a loss."""

    def __init__(self, matching: Matching, ascent: SinkhornAscent, line: Line, seed: int) -> None:
        self._matching, self._ascent, self._line = matching, ascent, line
        self._generator = np.random.default_rng([seed, 3])
        self._state_b = line.runner.own(matching.state_b)

    def step(self, batch: Batch) -> None:
        """One step, with the loss at a random point of the line."""
        t = float(self._generator.uniform())
        self._ascent.step(partial(self._slopes, batch, t))

    def rounded(self) -> dict[str, IntArray]:
        """The permutations as they would be now."""
        return self._ascent.relaxation.rounded(self._ascent.maps())

    def mean_loss(
        self, arrays: Mapping[str, IntArray], loader: Iterable[Any], most: int | None
    ) -> float:
        """Of the midpoint, over a loader."""
        permutation = self._matching.permutation(arrays)
        state = permutation.permute_state_dict(self._matching.state_b)
        return self._line.mean_loss(self._line.runner.own(state), loader, most)

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
        for name, groups in self._matching.symmetry.layout.items():
            tensor = state.get(name)
            if tensor is not None and tensor.is_floating_point() and groups:
                wide = unfolded(self._ascent.relaxation.cast(tensor), groups)
                soft = folded(mixed(wide, groups, complete), groups, tensor.shape)
                state[name] = soft.to(tensor)
        return state
