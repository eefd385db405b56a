"""Batches on their way through a model, each of which can stop at a layer while others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.merge.moments import Moments
from fxrebasin.merge.sites import Site, hooked
from fxrebasin.running.batches import Batch, Runner
from fxrebasin.running.messages import attempt
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.watching import OperatorMode

Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From the output of a layer to what takes its place."""


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


class Lane:
    """One batch on its way through a model.

    It has a thread, so that it can stop in the middle of the model's code, and a structure of its
    own, since models put things in their attributes. Its operators are computed by the thread that
    made it: with many threads that compute, each would have a pool of workers for itself.

    Args:
        running: of the model; computes the operators.
        model: whose code is run, with the tensors of the very model.
        sites: where it stops.
        batch: the inputs.

    Attributes:
        site: where it stands; None when it is through.
        moments: of what comes there.

    Raises:
        RuntimeError: there can be no more threads.
    """

    def __init__(
        self, running: Runner, model: nn.Module, sites: Sequence[Site], batch: Batch
    ) -> None:
        self.site: Site | None = None
        self.moments: Moments | None = None
        self._running, self._batch, self._sites = running, batch, sites
        self._events: SimpleQueue[_Operator | _Arrival | _End] = SimpleQueue()
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._model = own_structure(model)
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def go_on(self, change: Change | None = None) -> None:
        """Run to the next site, or to the end.

        Args:
            change: what is done to the output of the layer where it stands.

        Raises:
            InputError: the model does not run on the batch.
        """
        self.site = self.moments = None
        answer = _Answer(change)
        while True:
            self._answers.put(answer)
            event = self._events.get()
            if isinstance(event, _Arrival):
                self.site, self.moments = event.site, event.moments
                return
            if isinstance(event, _End):
                self._thread.join()
                if event.error is not None:
                    raise event.error
                return
            answer = self._computed(event)

    def stop(self) -> None:
        """Give up; does nothing when it is through."""
        while self._thread.is_alive():
            # of those that a model's code does not catch by accident, it is the one to end threads
            self._answers.put(_Answer(error=SystemExit()))
            self._thread.join(0.01)

    def _computed(self, operator: _Operator) -> _Answer:
        found: list[Any] = []
        with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_VIEWS):
            error = attempt(
                lambda: found.append(
                    self._running.watched(operator.func, operator.args, operator.kwargs)
                )
            )
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
        self._events.put(_Arrival(site, moments))
        change: Change | None = self._asked()
        return change

    def _operator(self, operator: _Operator) -> Any:
        self._events.put(operator)
        return self._asked()

    def _asked(self) -> Any:
        answer = self._answers.get()
        if answer.error is not None:
            raise answer.error
        return answer.value


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
