"""The runs of one model: a first one, and more if it looks at data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from fxrebasin.choices import Choices
from fxrebasin.models.redraw import redrawn
from fxrebasin.passes.propagate.call_site import CallSite
from fxrebasin.passes.propagate.constants import FunctionWatch
from fxrebasin.passes.propagate.model_output import ModelOutput
from fxrebasin.passes.propagate.model_state import Held
from fxrebasin.passes.propagate.pinned_outputs import outputs_found, pin_outputs, states_returned
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.propagator import Propagator, RunOn
from fxrebasin.passes.propagate.routing import (
    raised_by_python,
    unread_state,
    wider,
    with_more_rows,
    with_twos,
)
from fxrebasin.running.devices import device_of
from fxrebasin.running.given import Given, remade
from fxrebasin.running.messages import attempt
from fxrebasin.running.outputs import counted, reduced
from fxrebasin.running.preserve import preserve
from fxrebasin.running.randomness import python_numbers

_MORE_RUNS = 6
"""The most runs on other inputs, where a model looks at data."""

_NUMBERS_AT_MOST = 4
"""Lines that look at numbers of which larger and smaller ones are tried."""

_IDLE_RUNS = 2
"""How many runs on other inputs in a row may find nothing new before no more are made."""

_TWICE = 2
"""By how much rows are multiplied, to see whether there are more looks then."""

_MORE_ROWS = (16, 64)
"""By how much rows are multiplied, if after that some state (other experts) was not read."""

_WORK_AT_MOST = 1 << 23
"""The most elements that operators may make in a run on more rows; each operator counts as some."""


def run_model(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    held: Sequence[Held],
    choices: Choices,
    kind: RunOn,
) -> Propagation:
    """Run a model as often as it takes, and return what was found.

    Args:
        model: in eval mode.
        args: positional inputs.
        kwargs: keyword inputs.
        held: the tensors of the model and what they are taken for.
        choices: of the user: outputs that count.
        kind: which tensors have data.
    """
    mode = Propagator(CallSite(model), kind)
    with torch.no_grad():  # what guards the model would look at each of these operators
        mode.tensors.add_constants(model)
        stand_ins = mode.tensors.stand_ins(held)
    runs = _Runs(mode, model, stand_ins, choices)
    with preserve(model):
        given = (tuple(args), dict(kwargs))
        numbers = python_numbers()
        runs.run(given)
        if python_numbers() != numbers:
            mode.escapes.drawn_in_python()
            runs.run_otherwise(given)
        elif mode.result.looked_at_data:
            runs.run_otherwise(given)
        pin_outputs(mode.result, mode.recorder, runs.outputs)
    return mode.finish()


class _Runs:
    """Runs a model under a mode; `outputs` are those of all runs."""

    def __init__(
        self,
        mode: Propagator,
        model: nn.Module,
        stand_ins: Mapping[str, torch.Tensor],
        choices: Choices,
    ) -> None:
        self.outputs: list[ModelOutput] = []
        self._mode, self._model, self._stand_ins = mode, model, dict(stand_ins)
        self._wanted = choices.outputs
        self._ledger, self._states = mode.result.ledger, mode.tensors.states
        self._half_read: set[str] = set()
        self._returned: set[str] = set()

    def run(
        self,
        values: Any,
        turned: str | None = None,
        answers: Sequence[bool] = (),
        far: int = 0,
        masks: bool = False,
    ) -> None:
        """Run the model once.

        Args:
            values: positional and keyword inputs.
            turned: see `Looks.begin_run`, as of what follows.
            answers: to the first looks at data.
            far: whether a line gets other numbers than the data have.
            masks: whether masks choose the rows that they leave out.
        """
        mode = self._mode
        inputs = remade(values, mode.tensors.add_input)
        before = Given(*inputs)
        mode.escapes.begin_run()
        mode.looks.begin_run(turned, answers, far, masks)
        with mode.site.watch(), mode, FunctionWatch(self._told(values), mode.read):
            returned = functional_call(self._model, self._stand_ins, *inputs, tie_weights=False)
            returned = reduced(self._model, returned, self._wanted)
        if mode.escapes.refusal is not None:
            raise mode.escapes.refusal
        # on another path through the model there may be fewer outputs
        counts = counted(returned, self._wanted, before, strict=not self.outputs)
        found = outputs_found(mode.tensors, mode.recorder, counts)
        self._returned |= states_returned(found, self._states)
        self.outputs += found

    def _told(self, values: Any) -> torch.device:
        """Where the model is told that it is: without any data, where it is made to be."""
        if self._mode.all_meta:
            return torch.device("meta")
        return device_of(self._model, values)

    def run_otherwise(self, given: Any) -> None:
        """Take other paths through a model that looks at data; doubt what none of them reads."""
        looks, once = self._mode.looks, self._mode.recorder.work
        paths, few = looks.other_paths(), looks.may_follow()
        self._run_on_other_inputs(given)
        if looks.chose_nothing:
            self._attempt(partial(self.run, given, masks=True))
        for marked in with_twos(given) if self._unread() else ():
            self._attempt(partial(self.run, marked))
        if few or self._unread():
            looks.follow(lambda path: self._attempt(partial(self.run, given, answers=path)), paths)
        self._run_on_more_rows(given, once)
        if looks.lines:
            for source in [source for source, yes_or_no in looks.sources.items() if yes_or_no]:
                self._attempt(partial(self.run, given, source))
            for source, far in product(list(looks.numbers)[:_NUMBERS_AT_MOST], (-1, 1)):
                self._attempt(partial(self.run, given, source, far=far))
        unread = self._unread()
        if unread:
            looks.pin_doubtful(self._ledger)
        self._mode.result.notes.update(dict.fromkeys(looks.notes(unread)))

    def _run_on_other_inputs(self, given: Any) -> None:
        """Until nothing new is reached."""
        idle = 0
        for seed in range(1, 1 + _MORE_RUNS):
            known = self._reached()
            self.run(redrawn(given, seed))
            idle = idle + 1 if self._reached() == known else 0
            if idle == _IDLE_RUNS:
                break

    def _run_on_more_rows(self, given: Any, work: int) -> None:
        """While not all state was read, unless the work of one run, times the rows, is too much."""
        looks = self._mode.looks
        for seed, factor in enumerate((_TWICE, *_MORE_ROWS), start=1 + _MORE_RUNS):
            larger = with_more_rows(given, factor) if work * factor <= _WORK_AT_MOST else None
            if larger is not None and self._unread() and (factor == _TWICE or looks.lines):
                self._attempt(partial(self.run, wider(redrawn(larger, seed))))
                looks.compare_rows()

    def _reached(self) -> set[object]:
        """What was read of the state, and by which operators and lines."""
        return self._ledger.places() | self._mode.reached

    def _unread(self) -> list[str]:
        """State that was not read completely, or only by a run that did not finish."""
        found = {*unread_state(self._ledger, self._states), *self._half_read}
        return [name for name in self._states if name in found - self._returned]

    def _attempt(self, run: Callable[[], None]) -> bool:
        """Make a run that may raise; returns whether its end does not depend on its data.

        State that is read only by runs whose end does may meet more than was seen.
        """
        before = self._unread()
        error = attempt(run)
        if error is None:
            return True
        half_read = set(before) - set(self._unread())
        self._half_read |= half_read
        if half_read:
            self._mode.looks.lose()
        return not half_read and raised_by_python(error)
