"""Processes that work on one result: what each has to tell the others, over torch.distributed.

`torchrun` starts them, on one machine or on several. All of them make the same calls in the same
order; what one of them knows is the same in all of them after each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import torch

from fxrebasin.errors import FxRebasinError
from fxrebasin.streaming.started import are_several

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)
"""How long one waits for the others; that a process ended is noticed at once."""
_AT_ONCE = 2**22


class RankLostError(FxRebasinError):
    """Another of the processes that work on one result has ended, or does not answer."""


class Ranks(Protocol):
    """The processes that work on one result."""

    @property
    def number(self) -> int:
        """Of this one, from 0."""

    @property
    def count(self) -> int:
        """Of all."""

    def add_up(self, numbers: torch.Tensor) -> None:
        """Put the sum over all processes in the place of the numbers of each."""

    def every(self, value: T) -> list[T]:
        """The values of all processes, in their order."""


@dataclass(frozen=True)
class Alone:
    """One process."""

    number: int = 0
    count: int = 1

    def add_up(self, numbers: torch.Tensor) -> None:
        """There is nothing to add."""

    def every(self, value: T) -> list[T]:
        """The one value."""
        return [value]


ALONE = Alone()


@dataclass(frozen=True)
class Together:
    """Several processes, joined by the default group of torch.distributed.

    Args:
        number: of this one, from 0.
        count: of all.
    """

    number: int
    count: int

    def add_up(self, numbers: torch.Tensor) -> None:
        """Put the sum over all processes in the place of the numbers of each.

        Args:
            numbers: of any shape, in one piece; integers, so that the order does not matter.
        """
        with _lost():
            for part in numbers.view(-1).split(_AT_ONCE):
                torch.distributed.all_reduce(part)

    def every(self, value: T) -> list[T]:
        """The values of all processes, in their order.

        Args:
            value: what can be pickled.
        """
        found: list[T | None] = [None] * self.count
        with _lost():
            torch.distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # all of them are there


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # which is all that torch says when a connection is closed
        raise RankLostError(
            "another process of this run has ended or does not answer, and so nothing was "
            "written. What it said is above; run again with --resume"
        ) from error


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that this one was started with; it alone if it was not started with others.

    Raises:
        RankLostError: they do not find each other.
    """
    if not are_several():
        yield ALONE
        return
    with _lost():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Together(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
