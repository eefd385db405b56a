"""Processes that work on one result: what each has to tell the others, over torch.distributed.

`torchrun` starts them, on one machine or on several. All of them make the same calls in the same
order; what one of them knows is the same in all of them after each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch

from fxrebasin.errors import FxRebasinError

T = TypeVar("T")

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
    """Several processes, joined by a group of torch.distributed.

    Args:
        number: of this one in the group, from 0.
        count: of all.
        group: that joins them; the default one when left out.
    """

    number: int
    count: int
    group: Any = None

    def add_up(self, numbers: torch.Tensor) -> None:
        """Put the sum over all processes in the place of the numbers of each.

        Args:
            numbers: of any shape, in one piece; integers, so that the order does not matter.
        """
        with lost():
            for part in numbers.view(-1).split(_AT_ONCE):
                torch.distributed.all_reduce(part, group=self.group)

    def every(self, value: T) -> list[T]:
        """The values of all processes, in their order.

        Args:
            value: what can be pickled.
        """
        found: list[Any] = [None] * self.count
        with lost():
            torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def hand(self, value: object, to: int) -> None:
        """Give something to another process, which takes it.

        Args:
            value: what can be pickled.
            to: its number.
        """
        with lost():
            torch.distributed.send_object_list([value], group=self.group, group_dst=to)

    def take(self, source: int) -> Any:
        """What another process hands to this one.

        Args:
            source: its number.
        """
        found: list[Any] = [None]
        with lost():
            torch.distributed.recv_object_list(found, group=self.group, group_src=source)
        return found[0]

    def tell(self, value: T | None, source: int) -> T:
        """What one process has, in all of them.

        Args:
            value: what can be pickled; that of others does not count.
            source: its number.
        """
        found = [value]
        with lost():
            torch.distributed.broadcast_object_list(found, group=self.group, group_src=source)
        return cast(T, found[0])


@contextmanager
def lost() -> Iterator[None]:
    """Tell errors of torch.distributed apart, which says little of them.

    Raises:
        RankLostError: another process has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:  # which is all that torch says when a connection is closed
        raise RankLostError(
            "another process of this run has ended or does not answer, and so nothing was "
            "written. What it said is above; commands go on where they were with --resume"
        ) from error
