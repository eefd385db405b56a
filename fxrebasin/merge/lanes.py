"""Batches on their way through a model, each of which can stop at a layer while others go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import FxRebasinError
from fxrebasin.merge.moments import Moments
from fxrebasin.merge.overflow import Belongings
from fxrebasin.merge.sites import Site, hooked
from fxrebasin.running.batches import Batch, Runner
from fxrebasin.running.messages import attempt
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.watching import OperatorMode

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From the output of a layer to what takes its place."""


_PATIENCE = 5.0
"""Seconds without an operator after which a batch is taken to wait for what another one holds."""
_MOMENT = 0.01
_COMPUTING = Lock()
"""Held by a batch that runs alone while it computes; no operator waits for a model's locks."""


class NotAbreastError(FxRebasinError):
    """A model does not run on several batches side by side.

    It may wait for a lock that a batch holds which stopped at a layer, or need the caller's thread.
    """


# An operator comes here from below what keeps account of gradients and views, and goes back there.
_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)


@dataclass(frozen=True)
class _Operator:
    """An operator that a batch is to compute."""

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Arrival:
    """A batch has come to a site."""

    site: Site
    moments: Moments


@dataclass(frozen=True)
class _End:
    """A batch is through, or failed."""

    error: BaseException | None


@dataclass(frozen=True)
class _Answer:
    """What a batch goes on with."""

    value: Any = None
    error: BaseException | None = None
    alone: bool = False


_ALONE = _Answer(alone=True)
"""From here on a batch runs by itself, and stops at no site."""


class Lane:
    """One batch on its way through a model.

    It has a thread, so that it can stop in the middle of the model's code, and a structure of its
    own, since models put things in their attributes. Its operators are computed by the thread that
    made it: with many threads that compute, each would have a pool of workers for itself. What a
    model finds in context variables is what the caller has in them.

    Args:
        running: of the model; computes the operators.
        model: whose code is run, with the tensors of the very model.
        sites: where it stops.
        batch: the inputs.
        belongings: what may go to a file wherever the batch stops; None if nobody's does.

    Attributes:
        site: where it stands; None when it is through.
        moments: of what comes there.
        by_itself: number of operators that its own thread computed.

    Raises:
        NotAbreastError: there can be no more threads.
    """

    def __init__(
        self,
        running: Runner,
        model: nn.Module,
        sites: Sequence[Site],
        batch: Batch,
        belongings: Belongings | None = None,
    ) -> None:
        self.site: Site | None = None
        self.moments: Moments | None = None
        self.by_itself = 0
        self._running, self._sites, self._belongings = running, sites, belongings
        self._batch = batch if belongings is None else belongings.taken(batch)
        self._events: SimpleQueue[_Operator | _Arrival | _End] = SimpleQueue()
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._model = own_structure(model)
        self._alone = self._over = False
        self._thread = Thread(target=copy_context().run, args=(self._work,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise NotAbreastError(f"there can be no more threads: {error}") from error

    def go_on(self, change: Change | None = None) -> None:
        """Run to the next site, or to the end.

        Args:
            change: what is done to the output of the layer where it stands.

        Raises:
            NotAbreastError: the model does not run on the batch, or not beside the others.
        """
        self.site = self.moments = None
        self._move(Belongings.bring_back)
        answer = _Answer(change)
        while True:
            self._answers.put(answer)
            event = self._event()
            if isinstance(event, _Arrival):
                self.site, self.moments = event.site, event.moments
                if self._belongings is not None:
                    self._belongings.leave_out([event.moments.mean, event.moments.squares])
                    self._move(Belongings.put_away)
                return
            if isinstance(event, _End):
                self._thread.join()
                if isinstance(event.error, Exception):
                    raise NotAbreastError(str(event.error)) from event.error
                if event.error is not None:
                    raise event.error
                return
            answer = self._computed(event)

    @property
    def ended(self) -> bool:
        """Whether it is through, or was stopped."""
        return not self._thread.is_alive()

    def go_alone(self) -> None:
        """Run to the end in its own thread, past all sites, for the sake of what it holds.

        What it has in a file is brought back. If that fails, it stops where it is.
        """
        try:
            self._move(Belongings.bring_back)
        except NotAbreastError:
            self.stop()
            return
        self._alone = True
        self._answers.put(_ALONE)
        if self._belongings is not None:
            _wait([self])  # so that not all are in memory at a time

    def stop(self) -> None:
        """End at the next operator or site."""
        self._over = True
        self._answers.put(_Answer())

    def _event(self) -> _Operator | _Arrival | _End:
        try:
            return self._events.get(timeout=_PATIENCE)
        except Empty:
            raise NotAbreastError(
                f"a batch waited for {_PATIENCE:g} s, as it does for a lock that another one holds"
            ) from None

    def _move(self, how: Callable[[Belongings], None]) -> None:
        """Move what it holds to the file, or back."""
        if self._belongings is not None:
            try:
                how(self._belongings)
            except OSError as error:
                raise NotAbreastError(f"a temporary file: {error}") from error

    def _computed(self, operator: _Operator) -> _Answer:
        found: list[Any] = []
        operands = (operator.args, operator.kwargs)
        if self._belongings is not None and self._belongings.reach_into_file(operands):
            raise NotAbreastError("a batch reads what another one has made")
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_VIEWS):
            error = attempt(
                lambda: found.append(
                    self._running.watched(operator.func, operator.args, operator.kwargs)
                )
            )
        if self._belongings is not None and error is None:
            self._belongings.note(operands, found[0])
        return _Answer(error=error) if error is not None else _Answer(found[0])

    def _work(self) -> None:
        """What the thread does."""
        error: BaseException | None = None
        try:
            self._asked()
            with torch.no_grad(), ExitStack() as hooks:
                for site in self._sites:
                    hooks.callback(hooked(self._model, site, self._arrived).remove)
                runner = self._running.beside(self._model, _HandingOver(self._operator))
                runner.call({}, self._batch)
        except BaseException as raised:  # noqa: BLE001 - it is raised where the batch is waited for
            error = raised
        self._events.put(_End(error))

    def _arrived(self, site: Site, moments: Moments) -> Change | None:
        self._check()
        if self._alone:
            return None
        self._events.put(_Arrival(site, moments))
        change: Change | None = self._asked().value
        return change

    def _operator(self, operator: _Operator) -> Any:
        self._check()
        answer = _ALONE
        if not self._alone:
            self._events.put(operator)
            answer = self._asked()
        if answer.alone:
            with _COMPUTING:
                answer = self._computed(operator)
            self.by_itself += 1
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _asked(self) -> _Answer:
        answer = self._answers.get()
        self._check()
        return answer

    def _check(self) -> None:
        if self._over:
            # of those that a model's code does not catch by accident, it is the one to end threads
            raise SystemExit


def end(lanes: Sequence[Lane]) -> None:
    """Give up; does nothing with those that are through.

    One that waits for what nobody gives it is left to its thread, which ends when it goes on.

    Args:
        lanes: all that may wait for each other.
    """
    for lane in lanes:
        lane.stop()
    _wait(lanes)


def release(lanes: Sequence[Lane]) -> None:
    """Let all run to their ends, so that what some hold and others wait for is given back.

    Args:
        lanes: all that may wait for each other.
    """
    for lane in lanes:
        lane.go_alone()
    _wait(lanes)


def _wait(lanes: Sequence[Lane]) -> None:
    """Until all have ended, or none has gone on for a while."""
    seen, until = -1, time.monotonic() + _PATIENCE
    while not all(lane.ended for lane in lanes) and time.monotonic() < until:
        now = sum(lane.by_itself + lane.ended for lane in lanes)
        if now != seen:
            seen, until = now, time.monotonic() + _PATIENCE
        time.sleep(_MOMENT)


class _HandingOver(OperatorMode):
    """Hands operators of this thread to somebody else."""

    def __init__(self, compute: Callable[[_Operator], Any]) -> None:
        super().__init__()
        self._compute = compute

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """What the operator returns.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        return self._compute(_Operator(func, args, kwargs))
