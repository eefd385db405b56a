"""Descent on the loss between two models, over elements that leave the function of one as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxrebasin.charts import Chart, Element
from fxrebasin.errors import InputError
from fxrebasin.options import check_count, check_positive
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Line, Runner, State, check_loader

_WARM_UP = 20
_LOOKS = 20
"""How often the held-back batches are looked at."""
_HELD_BACK = 8
_SHARE_HELD_BACK = 10
_UNKNOWN = 4
"""Batches that are held back of a loader that does not tell how many it has."""


Moving: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, Element]], dict[str, Tensor]]
"""From a state and elements of its classes to the state after they acted, differentiably."""

STARTS = ("activation", "weight")
"""What permutations and other elements may be found by before anything is learned."""


def check_start(start: object) -> None:
    """Refuse what nothing can be started from.

    Args:
        start: of the caller.

    Raises:
        InputError: there is no such start.
    """
    if start not in STARTS:
        raise InputError(f"no start {start!r}; there are: {', '.join(map(repr, STARTS))}")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast is learned.

    Args:
        steps: of Adam, each on one batch.
        rate: the largest step of a coordinate.
        spread: how far from the middle of the line models are drawn, at most half of it.
        seed: of the positions on the line.

    Raises:
        InputError: one of them cannot be used.
    """

    steps: int
    rate: float
    spread: float
    seed: int

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("rate", self.rate)
        if isinstance(self.spread, bool) or not isinstance(self.spread, int | float):
            raise InputError(f"spread is {self.spread!r}; it has to be a number from 0 to 0.5")
        if not 0 <= self.spread <= 0.5:
            raise InputError(f"spread is {self.spread!r}; it has to be a number from 0 to 0.5")

    def factor(self, step: int) -> float:
        """Share of the rate: it grows first, and then falls to nothing.

        Args:
            step: from 0.
        """
        warm = min(1.0, (step + 1) / min(_WARM_UP, self.steps))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def positions(self) -> Iterator[float]:
        """Of models on the line, as many as are asked for; the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            drawn = 2 * torch.rand((), generator=generator, dtype=torch.float32).item() - 1
            yield 0.5 + self.spread * drawn

    def looks_after(self, step: int) -> bool:
        """Whether held-back batches are looked at after a step.

        Args:
            step: from 0.
        """
        every = max(1, self.steps // _LOOKS)
        return (step + 1) % every == 0 or step + 1 == self.steps


class Batches:
    """The batches of a loader again and again, without those that are held back.

    Args:
        running: of the model.
        loader: that can be gone through again.

    Attributes:
        held_back: the first batches, a tenth of all, and at most 8; of a single one, that one.
    """

    def __init__(self, running: Runner, loader: Iterable[Any]) -> None:
        check_loader(loader)
        self._running, self._loader = running, loader
        total = len(loader) if isinstance(loader, Sized) else None
        count = _UNKNOWN if total is None else min(_HELD_BACK, -(-total // _SHARE_HELD_BACK))
        self.held_back = list(islice(running.batches(loader, None), count))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            seen = 0
            for batch in self._running.batches(self._loader, None):
                if batch.number >= len(self.held_back):
                    seen += 1
                    yield batch
            if not seen:
                yield from self.held_back

    def held_back_loss(self, line: Line, state_b: State) -> float:
        """The mean loss at the midpoint on the batches that are held back.

        Args:
            line: from the reference to the model.
            state_b: of the model, from `Runner.own`.
        """
        with torch.no_grad():
            losses = [float(line.loss(state_b, batch)) for batch in self.held_back]
        return sum(losses) / len(losses)


@dataclass
class Descent:
    """The search for elements that bring a model to where the loss between both is low.

    Args:
        line: from the reference to the model.
        state_b: of the model, aligned as well as is known, with ones as factors of its norms.
        action: how elements act on it.
        charts: of the classes that are moved.

    Attributes:
        best: coordinates with the lowest loss on held-back batches, by class.
        loss: of these; of the start until anything is better.
    """

    line: Line
    state_b: State
    action: Moving
    charts: Mapping[str, Chart]
    best: dict[str, Tensor] = field(init=False)
    _wide: dict[str, Tensor] = field(init=False)
    loss: float = math.inf
    start: float = math.inf

    def __post_init__(self) -> None:
        self._wide = {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            for name, tensor in self.state_b.items()
            if tensor.is_floating_point()
        }
        double = any(tensor.dtype == torch.float64 for tensor in self._wide.values())
        dtype = torch.float64 if double else torch.float32
        device = self.line.runner.device
        self.best = {name: chart.zeros().to(device, dtype) for name, chart in self.charts.items()}

    def run(self, batches: Batches, schedule: Schedule, report: LateBar) -> Iterator[int]:
        """Descend, and keep the best in `best`; Ctrl-C is passed on.

        Args:
            batches: of data.
            schedule: how long and how fast.
            report: shows the loss and the number of steps.

        Yields:
            The number of steps so far.

        Raises:
            InputError: the model does not run on a batch, or its loss cannot be used.
        """
        found = {name: item.clone().requires_grad_() for name, item in self.best.items()}
        self.start = self._look(found, batches)
        if not found:
            return
        positions = schedule.positions()
        adam = torch.optim.Adam(list(found.values()), lr=schedule.rate)
        for step, batch in enumerate(islice(batches, schedule.steps)):
            for group in adam.param_groups:
                group["lr"] = schedule.rate * schedule.factor(step)
            self._step(found, batch, next(positions))
            adam.step()
            if schedule.looks_after(step):
                self._look(found, batches)
            report("learning", step + 1, schedule.steps, f"midpoint loss {self.loss:.4f}")
            yield step + 1

    def _moved(self, coordinates: State) -> dict[str, Tensor]:
        """The state after elements acted, in no less than float32, as the model has it."""
        elements = {name: self.charts[name].element(item) for name, item in coordinates.items()}
        moved = self.action(self._wide, elements)
        return {n: moved[n].to(own) if n in moved else own for n, own in self.state_b.items()}

    def _step(self, coordinates: State, batch: Batch, t: float) -> None:
        """Leave the derivatives of the loss on one batch."""
        with torch.enable_grad():
            value = self.line.loss(self._moved(coordinates), batch, t)
            slopes = self.line.slopes(value, coordinates)
        for name, tensor in coordinates.items():
            tensor.grad = slopes[name]

    def _look(self, coordinates: State, batches: Batches) -> float:
        """The loss at the midpoint on held-back batches; the best are kept."""
        with torch.no_grad():
            state = self._moved(coordinates)
        loss = batches.held_back_loss(self.line, state)
        if loss < self.loss:
            self.loss = loss
            self.best = {name: item.detach().clone() for name, item in coordinates.items()}
        return loss
