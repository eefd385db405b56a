"""Control points of a Bézier curve between two models, trained (Garipov et al. 2018)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxrebasin.interruption import interruptible
from fxrebasin.merge.curves import bezier_weights, nearest_model
from fxrebasin.merge.states import is_number, tied_names, weighted_mean
from fxrebasin.options import check_count, check_positive
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Line, Loss, Runner, State, check_loader, runner


@dataclass(frozen=True)
class Bends:
    """How control points are trained.

    Args:
        seed: of the positions that are drawn, and the order of a shuffling loader.
        epochs: passes over the loader.
        learning_rate: of Adam at the start.
        count: number of control points.
    """

    seed: int
    epochs: int
    learning_rate: float
    count: int


def check_bends(training: Bends) -> None:
    """Refuse options that cannot be used.

    Args:
        training: of the caller.

    Raises:
        InputError: a value cannot be used.
    """
    check_count("epochs", training.epochs)
    check_count("bends", training.count)
    check_positive("learning_rate", training.learning_rate)


def train_bends(
    model: nn.Module,
    ends: tuple[State, State],
    training: Bends,
    loader: Iterable[Any],
    loss: Loss,
    fixed: Collection[str] = (),
) -> list[State]:
    """The control points of a curve of low loss: both ends, and the trained ones between them.

    They start on the straight line. For every batch a position is drawn uniformly, and the loss
    of the model there is lowered. BatchNorm uses the statistics of the batch, everything else is
    in eval mode; float buffers stay on the straight line. On Ctrl-C the curve is returned as
    far as it was trained, with a warning.

    Args:
        model: whose code is run; left as it is.
        ends: states by the names of the model's state dict.
        training: number of control points, and how they are trained.
        loader: batches of inputs and targets.
        loss: of outputs and targets.
        fixed: names of tensors that are the same at both ends and stay so.

    Raises:
        InputError: loader or loss cannot be used.
    """
    check_loader(loader)
    between = [_on_the_line(ends, k / (training.count + 1)) for k in range(1, training.count + 1)]
    with runner(model, training.seed) as running, closing(LateBar()) as report:
        descent = _CurveDescent(running, [ends[0], *between, ends[1]], training, loss, fixed)
        with interruptible("training was interrupted: the curve is used as far as it is"):
            for epoch in range(training.epochs):
                report("training the curve", epoch, training.epochs)
                descent.epoch(running.batches(loader, None), epoch)
    return [ends[0], *(_tied(model, state) for state in descent.bent(between)), ends[1]]


class _CurveDescent:
    """Control points that move to where the loss is lower."""

    def __init__(
        self,
        running: Runner,
        points: Sequence[State],
        training: Bends,
        loss: Loss,
        fixed: Collection[str],
    ) -> None:
        self._line = Line(running, points[0], loss)
        self._training = training
        self._weights = bezier_weights(len(points))
        self._points = [running.own(point) for point in points]
        self._names = [
            n
            for n, p in running.model.named_parameters()
            if is_number(p) and p.requires_grad and n not in fixed
        ]
        self._moving = [
            {n: point[n].detach().clone() for n in self._names} for point in self._points[1:-1]
        ]
        self._optimiser = torch.optim.Adam(
            [tensor for point in self._moving for tensor in point.values()],
            lr=training.learning_rate,
        )
        self._draws = torch.Generator().manual_seed(training.seed)

    def epoch(self, batches: Iterator[Batch], epoch: int) -> None:
        """One pass over the loader."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._training.learning_rate * (1 - epoch / self._training.epochs)
        for batch in batches:
            self._step(batch, float(torch.rand((), generator=self._draws, dtype=torch.float32)))

    def _step(self, batch: Batch, t: float) -> None:
        weights = self._weights(t)
        points = [
            point | moving
            for point, moving in zip(self._points, [{}, *self._moving, {}], strict=True)
        ]
        with torch.enable_grad():
            here = {
                name: weighted_mean([point[name] for point in points], weights, own)
                if is_number(own)
                else own
                for name, own in self._points[0].items()
            }
            leaves = {name: here[name].requires_grad_() for name in self._names}
            slopes = self._line.slopes(self._line.loss(here, batch, t=1.0), leaves)
        for weight, moving in zip(weights[1:-1], self._moving, strict=True):
            for name, tensor in moving.items():
                tensor.grad = weight * slopes[name]
        self._optimiser.step()

    def bent(self, between: Sequence[State]) -> list[dict[str, torch.Tensor]]:
        """The control points as they are now, with all that is not trained."""
        return [{**state, **moving} for state, moving in zip(between, self._moving, strict=True)]


def _on_the_line(ends: tuple[State, State], t: float) -> State:
    nearest = ends[nearest_model(t, 2)]
    return {
        name: weighted_mean([end[name] for end in ends], [1 - t, t], a)
        if is_number(a)
        else nearest[name]
        for name, a in ends[0].items()
    }


def _tied(model: nn.Module, state: dict[str, torch.Tensor]) -> State:
    """The state with the trained tensor under all of its names."""
    trained = dict(model.named_parameters())
    for names in tied_names(model):
        for source in (name for name in names if name in trained):
            state |= dict.fromkeys(names, state[source])
    return state
