"""Epochs over a loader, after each of which the loss of the midpoint decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fxrebasin.indexing import Arrays
from fxrebasin.interruption import interruptible
from fxrebasin.layout import IntArray
from fxrebasin.options import check_count
from fxrebasin.passes.match.best import Best
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.running.batches import Batch, Line, Loss, check_loader, runner
from fxrebasin.solvers.weight_search import Report


class Learner(Protocol):
    """What learns permutations from batches."""

    def step(self, batch: Batch) -> None:
        """Learn from one batch.

        Args:
            batch: of the loader.
        """

    def projection(self) -> dict[str, IntArray]:
        """The permutations as they would be now, int64 by class name."""


@dataclass(frozen=True)
class Training:
    """What is learned from, checked.

    Args:
        loader: batches that can be gone through again.
        loss: of outputs and targets.
        epochs: number of times that the loader is gone through.
        max_batches: of each epoch; None for all.

    Raises:
        InputError: one of them cannot be used.
    """

    loader: Iterable[Any]
    loss: Loss
    epochs: int
    max_batches: int | None

    def __post_init__(self) -> None:
        check_epochs(self.epochs, self.max_batches)
        check_loader(self.loader)


def check_epochs(epochs: int, max_batches: int | None) -> None:
    """Refuse numbers of epochs and batches that cannot be used.

    Args:
        epochs: of the caller.
        max_batches: of the caller.

    Raises:
        InputError: one of them cannot be used.
    """
    check_count("epochs", epochs)
    if max_batches is not None:
        check_count("max_batches", max_batches)


def trained(
    problem: MatchingProblem,
    training: Training,
    start: Arrays,
    make: Callable[[Line], Learner],
    report: Report,
) -> tuple[dict[str, IntArray], int]:
    """The permutations with the lowest mean loss at the midpoint, and the number of steps.

    Those at the start are compared with the projections after each epoch, which costs another pass
    over the loader for each of these that is new. On Ctrl-C the best so far are returned, with a
    warning.

    Args:
        problem: what is matched.
        training: data and loss.
        start: int64 by class name.
        make: makes the learner, once the model is ready to run.
        report: called with the stage, the number of batches that are done, and of all.

    Raises:
        InputError: the model does not run on a batch, or the loss is not a finite number.
    """
    best, steps = Best(start), 0
    with interruptible(), runner(problem.model, problem.seed) as running:
        line = Line(running, problem.common_a, training.loss)

        def offer(arrays: Arrays) -> None:
            state = running.own(problem.permuted(arrays))
            best.offer(arrays, line.mean_loss(state, training.loader, training.max_batches))

        learner = make(line)
        offer(start)
        for epoch in range(training.epochs):
            stage = f"epoch {epoch + 1} of {training.epochs}"
            for batch in running.batches(training.loader, training.max_batches):
                learner.step(batch)
                steps += 1
                report(stage, batch.number + 1, training.max_batches)
            found = learner.projection()
            if best.is_new(found):
                offer(found)
    return best.arrays, steps
