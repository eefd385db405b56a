"""Method "learned" over the groups of a symmetry: the element whose midpoint has a low loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from fxrebasin.action import Action
from fxrebasin.charts import Chart, charts_of, condition_of
from fxrebasin.errors import FxRebasinWarning
from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.balance import Balanced, balanced
from fxrebasin.passes.match.concluding import concluded
from fxrebasin.passes.match.descent import Batches, Descent, Schedule, check_start
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_problem import Element, GroupProblem, GroupResult
from fxrebasin.passes.match.refining import refined
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Line, Loss, Runner, check_loader, runner

_INTERRUPTED = "matching was interrupted: the best element so far is used"
_FAR = 1e3
"""A condition number from which digits of half precision are lost."""


def match_learned_over_groups(
    problem: GroupProblem,
    *,
    loader: Iterable[Any],
    loss: Loss,
    steps: int = 300,
    rate: float = 0.02,
    spread: float = 0.1,
    start: str = "activation",
    max_batches: int = 32,
) -> GroupResult:
    """Descent by gradients on the loss of models between the reference and the aligned model.

    Generalized linear mode connectivity, arXiv:2506.22712, with exact elements throughout: what is
    learned are coordinates of elements (see `fxrebasin.charts`), so that the model's function
    stays. Permutations and signs are those that `start` finds, and are held. In every step a model
    near the middle of the line is drawn, its loss is taken on a batch, and Adam moves all
    coordinates. The first batches of the loader, a tenth but at most 8, are held back: of what they
    say is lowest at the midpoint, the start included, the best is returned. Models run in their own
    precision; the element is exact in float64. BatchNorm uses the statistics of the batch. On
    Ctrl-C the best so far is returned, with a warning.

    Args:
        problem: what to match; its seed decides the positions on the line and the order of a
            shuffling loader.
        loader: an iterable of batches that can be gone through repeatedly: `(inputs, targets)`, or
            inputs alone, for which the targets are None. With random augmentation as in training,
            less is learned by heart.
        loss: of outputs and targets, differentiable; lower is better.
        steps: of Adam, each on one batch.
        rate: the largest step of a coordinate.
        spread: how far from the middle models are drawn, from 0 to 0.5.
        start: `"activation"`, or `"weight"`, which looks at no data.
        max_batches: of the loader that the start looks at.

    Raises:
        InputError: an option cannot be used, the model does not run on a batch, or the loss is not
            a finite number.
    """
    check_start(start)
    check_count("max_batches", max_batches)
    check_loader(loader)
    schedule = Schedule(steps, rate, spread, problem.seed)
    search = _Search(problem, loss)
    with (
        closing(LateBar()) as report,
        interruptible(_INTERRUPTED),
        runner(problem.plain.model, problem.seed) as running,
    ):
        search.begin(running, loader, start, max_batches, report)
        search.descend(running, loader, schedule, report)
    return GroupResult(search.found(), search.steps, search.notes())


class _Search:
    """What is known of the best element, whenever it is asked for.

    Args:
        problem: what is matched.
        loss: of outputs and targets.
    """

    def __init__(self, problem: GroupProblem, loss: Loss) -> None:
        self._problem, self._loss = problem, loss
        self.element, self.steps = problem.identity(), 0
        self._descent: Descent | None = None
        self._balance = problem.identity()

    def begin(
        self, running: Runner, loader: Iterable[Any], start: str, most: int, report: LateBar
    ) -> None:
        """Find the element to start from."""
        problem = self._problem
        if start == "activation":
            evidence = Evidence(problem)
            evidence.collect(running, loader, most, report)
            self.element = concluded(evidence, running, report)
        else:
            names = [c.name for c in problem.classes]
            self.element = refined(Balanced.of(problem), problem.identity(), names)

    def descend(
        self, running: Runner, loader: Iterable[Any], schedule: Schedule, report: LateBar
    ) -> None:
        """Learn, from the element that was found before."""
        problem = self._problem
        charts = charts_of(problem.groups, [c for c in problem.classes if problem.free(c)])
        self._balance = balanced(problem, seats_of(problem), problem.state_a)
        state_a = problem.moved(self._balance, problem.state_a)
        state_b = problem.moved(problem.combined(self._balance, self.element))
        shapes = {name: tensor.shape for name, tensor in state_b.items()}
        action = Action(problem.groups, problem.classes, shapes, running.device)
        line = Line(running, state_a, self._loss)
        self._descent = Descent(line, running.own(state_b), action, charts)
        for step in self._descent.run(Batches(running, loader), schedule, report):
            self.steps = step

    def found(self) -> Element:
        """The best element."""
        problem, descent = self._problem, self._descent
        if descent is None:
            return self.element
        elements = {
            name: exact(descent.charts[name], coordinates)
            for name, coordinates in descent.best.items()
        }
        learned = Element(problem.identity().permutation, elements)
        there = problem.combined(learned, problem.combined(self._balance, self.element))
        return problem.combined(problem.inverse(self._balance), there)

    def notes(self) -> tuple[str, ...]:
        """Losses and condition numbers, in words; warns of matrices that lose digits."""
        descent = self._descent
        if descent is None:
            return ()
        words = [
            f"Loss at the midpoint on batches held back: {descent.loss:.4f}, "
            f"before learning {descent.start:.4f}."
        ]
        if not descent.charts:
            return ("Nothing was learned: only permutations and signs act on this model.",)
        say = warn_of_far(self.found())
        return (*words, say) if say else tuple(words)


def exact(chart: Chart, coordinates: Tensor) -> Tensor:
    """What has some coordinates, in float64.

    Args:
        chart: of the class.
        coordinates: learned in any precision.
    """
    return chart.element(coordinates.to("cpu", torch.float64)).own


def warn_of_far(element: Element) -> str:
    """The largest condition number of an element, in words; warns where digits are lost.

    Args:
        element: of all groups.
    """
    conditions = {name: condition_of(item) for name, item in element.elements.items()}
    if not conditions:
        return ""
    worst = max(conditions, key=conditions.__getitem__)
    say = (
        f"The largest condition number of what acts on a class is {conditions[worst]:.3g}, "
        f"on {worst}."
    )
    if conditions[worst] > _FAR:
        warnings.warn(
            f"{say} Rounding is as much larger in the result.",
            category=FxRebasinWarning,
            stacklevel=5,
        )
    return say
