"""Tensors of both models, fetched when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fxrebasin.counted import counted
from fxrebasin.indexing import Arrays
from fxrebasin.merge.turns import take_out
from fxrebasin.streaming.dealing import Part
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.sweeping import Tensors, moved

Read: TypeAlias = Callable[[str, slice | None], torch.Tensor]
"""From a name, and a range of rows or None, to a tensor in memory of its own."""


@dataclass(frozen=True)
class Within:
    """What is known where the reference is a mean that the model is part of.

    The model is matched with the mean of the others, for which nothing more has to be read.

    Args:
        arrays: the order that the model has in the mean, int64 by class name; it is to be bettered.
        share: how much of the mean the model is, below 1.
    """

    arrays: Arrays
    share: float


class Fetching:
    """Reads both models, and keeps what there is room for.

    Args:
        problem: shapes, and where units are.
        reference: reads tensors of the reference.
        model: reads tensors of the model.
        kept: names of the tensors that stay in memory once they were read whole.
        within: where the reference is a mean that the model is part of.

    Attributes:
        fetched: bytes that were read; whoever counts may set it back to 0.
    """

    def __init__(
        self,
        problem: FileProblem,
        reference: Read,
        model: Read,
        kept: Collection[str],
        within: Within | None = None,
    ) -> None:
        self._problem, self._reference, self._model = problem, reference, model
        self._kept, self._within = frozenset(kept), within
        self._cached: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.fetched = 0

    def both(self, name: str, rows: slice | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A tensor of the reference and of the model, or some of their rows.

        Args:
            name: of the tensor.
            rows: a range of positions along the first axis; all when left out.
        """
        if rows is None and name in self._cached:
            return self._cached[name]
        groups = self._problem.every.get(name, ())
        first = rows.start if rows is not None else 0
        one, two = (read(name, rows) for read in (self._reference, self._model))
        found = counted(one, groups, first), counted(two, groups, first)
        if self._within is not None:
            own = moved(found[1], self._problem.layout.get(name, ()), self._within.arrays)
            take_out(found[0], own, self._within.share)
        self.fetched += found[0].nbytes + found[1].nbytes
        if rows is None and name in self._kept:
            self._cached[name] = found
        return found

    def all_of(self, part: Part) -> Tensors:
        """The tensors of a part.

        Args:
            part: what is read at once.
        """
        return {name: self.both(name, part.rows) for name in part.names}

    def holding(self, stream: str, part: Part) -> Tensors:
        """Those tensors of a part that hold a stream.

        Args:
            stream: the class.
            part: what is read at once.
        """
        mine = tuple(n for n in part.names if stream in self._problem.held.get(n, ()))
        return self.all_of(Part(mine, part.rows, 0)) if mine else {}
