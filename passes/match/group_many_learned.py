"""Many models in one basis, by descent on the loss of their mean and of their pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxrebasin.action import Action
from fxrebasin.charts import Chart, charts_of
from fxrebasin.charts import Element as Acting
from fxrebasin.interruption import interruptible
from fxrebasin.options import check_count
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.concluding import concluded
from fxrebasin.passes.match.descent import Batches, Descent, Moving, Schedule, check_start
from fxrebasin.passes.match.evidence import Evidence
from fxrebasin.passes.match.group_learned import exact, warn_of_far
from fxrebasin.passes.match.group_many import elements_to_first
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.seats import seats_of
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Line, Loss, Runner, State, check_loader, runner

_INTERRUPTED = "aligning was interrupted: the best elements so far are used"
_MIDDLE = 0.5


def learned_to_first(
    problem: GroupProblem,
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    max_sweeps: int,
    *,
    loader: Iterable[Any],
    loss: Loss,
    steps: int = 300,
    rate: float = 0.02,
    spread: float = 0.1,
    start: str = "activation",
    max_batches: int = 32,
) -> list[Element]:
    """Elements that bring canonical states to where models between them have a low loss.

    The first model stays. The others start from what data, or weights, show of each beside the
    first (`start`), and what acts on all of them is learned together: in every other step the loss
    of the weighted mean of all is taken, else that of a model near the middle of a pair. Of what
    batches that are held back say of the mean the best is returned. All else is as in the method
    `"learned"` for two models. On Ctrl-C the best so far is returned, with a warning.

    Args:
        problem: its groups and its seed; which two models it compares does not matter.
        states: canonical.
        weights: how much each counts.
        max_sweeps: of a start by weights.
        loader: an iterable of batches that can be gone through repeatedly.
        loss: of outputs and targets, differentiable; lower is better.
        steps: of Adam, each on one batch.
        rate: the largest step of a coordinate.
        spread: how far from the middle of a pair models are drawn, from 0 to 0.5.
        start: `"activation"` or `"weight"`.
        max_batches: of the loader that the start looks at.

    Raises:
        InputError: an option cannot be used, or the model does not run on a batch.
    """
    check_start(start)
    check_count("max_batches", max_batches)
    check_loader(loader)
    schedule = Schedule(steps, rate, spread, problem.seed)
    search = _Search(problem, states, weights)
    with (
        closing(LateBar()) as report,
        interruptible(_INTERRUPTED),
        runner(problem.plain.model, problem.seed) as running,
    ):
        if start == "weight":
            search.elements = elements_to_first(problem, states, weights, max_sweeps)
        else:
            search.see(running, loader, max_batches, report)
        search.descend(running, (loader, loss), schedule, report)
    found = search.found()
    for element in found:
        warn_of_far(element)
    return found


class _Search:
    """What is known of the best elements, whenever they are asked for."""

    def __init__(
        self,
        problem: GroupProblem,
        states: Sequence[Mapping[str, Tensor]],
        weights: Sequence[float],
    ) -> None:
        self._problem, self._states, self._weights = problem, states, weights
        self.elements = [problem.identity() for _ in states]
        self._descent: Descent | None = None
        self._balance = problem.identity()

    def see(self, running: Runner, loader: Iterable[Any], most: int, report: LateBar) -> None:
        """Align each model with the first, by what data show."""
        first = self._states[0]
        for index, state in enumerate(self._states[1:], 1):
            evidence = Evidence(replace(self._problem, state_a=first, state_b=state))
            evidence.collect(running, loader, most, report)
            self.elements[index] = concluded(evidence, running, report)

    def descend(
        self,
        running: Runner,
        task: tuple[Iterable[Any], Loss],
        schedule: Schedule,
        report: LateBar,
    ) -> None:
        """Learn, from the elements that were found before."""
        problem, (loader, loss) = self._problem, task
        own = charts_of(problem.groups, [c for c in problem.classes if problem.free(c)])
        self._balance = balanced(problem, seats_of(problem), self._states[0])
        there = [
            problem.moved(problem.combined(self._balance, element), state)
            for element, state in zip(self.elements, self._states, strict=True)
        ]
        shapes = {name: tensor.shape for name, tensor in there[0].items()}
        action = Action(problem.groups, problem.classes, shapes, running.device)
        others = range(1, len(there))
        charts = {_name(k, name): chart for k in others for name, chart in own.items()}
        together = {_name(k, n): t for k in others for n, t in running.own(there[k]).items()}
        line = _Means(running, there[0], loss, (self._weights, schedule))
        self._descent = Descent(line, together, _for_each(action), charts)
        for _ in self._descent.run(Batches(running, loader), schedule, report):
            pass

    def found(self) -> list[Element]:
        """The best elements."""
        return [self._found(k) for k in range(len(self.elements))]

    def _found(self, index: int) -> Element:
        problem, descent = self._problem, self._descent
        if descent is None or not index:
            return self.elements[index]
        best = _split(descent.best).get(index, {})
        charts: dict[str, Chart] = _split(descent.charts).get(index, {})
        elements = {name: exact(charts[name], item) for name, item in best.items()}
        learned = Element(problem.identity().permutation, elements)
        there = problem.combined(learned, problem.combined(self._balance, self.elements[index]))
        return problem.combined(problem.inverse(self._balance), there)


class _Means(Line):
    """Losses of weighted means of many models."""

    def __init__(
        self,
        runner: Runner,
        first: State,
        loss: Loss,
        drawn: tuple[Sequence[float], Schedule],
    ) -> None:
        super().__init__(runner, first, loss)
        weights, schedule = drawn
        self._weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self._generator = torch.Generator().manual_seed(schedule.seed)

    def loss(self, state_b: State, batch: Batch, t: float = _MIDDLE) -> Tensor:
        """Of the mean of all models; off the middle, in every other draw, of a pair's.

        Args:
            state_b: of all models but the first, each name behind a model's number.
            batch: of the loader.
            t: position on the line of a pair; 0.5 for the mean of all.

        Raises:
            InputError: the loss is not a finite number.
        """
        shares = self._shares(t).tolist()
        rest = 1 - shares[0]
        mean: dict[str, Tensor] = {}
        for index, state in _split(state_b).items():
            for name, own in state.items():
                if shares[index] and own.is_floating_point():
                    part = shares[index] / rest * own
                    mean[name] = mean[name] + part if name in mean else part
        return super().loss(mean, batch, rest)

    def _shares(self, t: float) -> Tensor:
        if t == _MIDDLE:
            return self._weights
        if torch.rand((), generator=self._generator) < _MIDDLE:
            return self._weights
        one, two = torch.randperm(len(self._weights), generator=self._generator)[:2]
        shares = torch.zeros_like(self._weights)
        shares[one], shares[two] = 1 - t, t
        return shares


def _for_each(action: Action) -> Moving:
    """What acts on all models, each by its elements."""

    def act(state: Mapping[str, Tensor], elements: Mapping[str, Acting]) -> dict[str, Tensor]:
        found = dict(state)
        models = _split(state)
        for index, own in _split(elements).items():
            found |= {_name(index, n): t for n, t in action(models[index], own).items()}
        return found

    return act


_Item = TypeVar("_Item")


def _name(index: int, name: str) -> str:
    return f"{index}/{name}"


def _split(items: Mapping[str, _Item]) -> dict[int, dict[str, _Item]]:
    """What `_name` put together, by the number of the model."""
    found: dict[int, dict[str, _Item]] = {}
    for key, item in items.items():
        index, _, name = key.partition("/")
        found.setdefault(int(index), {})[name] = item
    return found
