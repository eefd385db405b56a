"""Method "learned": steps on the loss between the models, judged by batches that are held back."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import Any

from fxrebasin.indexing import Arrays, identity_arrays
from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.best import Best
from fxrebasin.passes.match.correlating import Collector, concluded
from fxrebasin.passes.match.descent import Batches, Schedule, check_start
from fxrebasin.passes.match.estimator import Estimator
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Line, Loss, Runner, check_loader, runner
from fxrebasin.solvers.weight_search import WeightSearch


def match_learned(
    problem: MatchingProblem,
    *,
    loader: Iterable[Any],
    loss: Loss,
    steps: int = 300,
    rate: float = 0.01,
    spread: float = 0.1,
    start: str = "activation",
    max_batches: int = 32,
) -> MatchResult:
    """Descent on the loss of models between the reference and the permuted model.

    With `symmetry="all"` this moves along all that leaves the model's function as it is, which is
    where its strength lies. With permutations alone it is the straight-through estimator of
    `"straight_through"`, from a start by activations, with models near the middle of the line
    instead of at it, and with the best permutation chosen by batches that are held back: the first
    ones of the loader, a tenth but at most 8. BatchNorm uses the statistics of the batch. On Ctrl-C
    the best permutation so far is returned, with a warning.

    Args:
        problem: what to match; its seed decides the positions on the line and the order of a
            shuffling loader.
        loader: an iterable of batches that can be gone through repeatedly: `(inputs, targets)`, or
            inputs alone, for which the targets are None.
        loss: of outputs and targets, differentiable; lower is better.
        steps: of Adam, each on one batch.
        rate: the largest step size, as a share of the root mean square of each tensor.
        spread: how far from the middle models are drawn, from 0 to 0.5.
        start: `"activation"`, or `"weight"`, which looks at no data.
        max_batches: of the loader that the start looks at.

    Raises:
        InputError: an option cannot be used, the model does not run on a batch, or the loss is not
            a finite number.

    Example:
        >>> import fxrebasin, torch
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Linear(5, 3)) for _ in "ab")
        >>> data = [(torch.randn(16, 2), torch.randint(3, (16,))) for _ in range(3)]
        >>> loss = torch.nn.functional.cross_entropy
        >>> p = fxrebasin.match(b, a, method="learned", loader=data, loss=loss, steps=3)
    """
    check_start(start)
    check_count("max_batches", max_batches)
    check_loader(loader)
    schedule = Schedule(steps, rate, spread, problem.seed)
    search = _Search(problem, loss)
    with (
        closing(LateBar()) as report,
        interruptible(),
        runner(problem.model, problem.seed) as running,
    ):
        search.begin(running, loader, start, max_batches, report)
        search.descend(running, loader, schedule, report)
    return problem.result(problem.permutation(search.best.arrays), search.steps, search.notes())


class _Search:
    """The best permutation so far, whenever it is asked for.

    Args:
        problem: what is matched.
        loss: of outputs and targets.
    """

    def __init__(self, problem: MatchingProblem, loss: Loss) -> None:
        self._problem, self._loss = problem, loss
        self._words: tuple[str, ...] = ()
        self.best, self.steps = Best(identity_arrays(problem.symmetry.classes)), 0

    def begin(
        self, running: Runner, loader: Iterable[Any], start: str, most: int, report: LateBar
    ) -> None:
        """Find the permutation to start from."""
        if start == "activation":
            collector = Collector(self._problem)
            collector.collect(running, loader, most, report)
            found = concluded(self._problem, collector, True, report)
            self.best, self._words = Best(found.permutation.arrays), found.notes
            return
        search = WeightSearch(self._problem.weights, self._problem.seed, report)
        search.start_all(search.usual_starts())
        self.best = Best(search.solution().arrays)
        if search.interrupted:
            raise KeyboardInterrupt

    def descend(
        self, running: Runner, loader: Iterable[Any], schedule: Schedule, report: LateBar
    ) -> None:
        """Learn, from that permutation."""
        line = Line(running, self._problem.common_a, self._loss)
        learner = Estimator(self._problem, self.best.arrays, schedule.rate, line)
        batches = Batches(running, loader)
        self._offer(line, batches, self.best.arrays)
        positions = schedule.positions()
        for step, batch in enumerate(islice(batches, schedule.steps)):
            learner.turn_down(schedule.factor(step))
            learner.step(batch, next(positions))
            found = learner.projection()
            if schedule.looks_after(step) and self.best.is_new(found):
                self._offer(line, batches, found)
            self.steps = step + 1
            report("learning", step + 1, schedule.steps, f"midpoint loss {self.best.loss:.4f}")

    def notes(self) -> tuple[str, ...]:
        """What a user should know, in words."""
        return self._words

    def _offer(self, line: Line, batches: Batches, arrays: Arrays) -> None:
        state = line.runner.own(self._problem.permuted(arrays))
        self.best.offer(arrays, batches.held_back_loss(line, state))
