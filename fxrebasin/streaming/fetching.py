"""Tensors of both models, fetched when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

import torch

from fxrebasin.counted import counted
from fxrebasin.streaming.dealing import Part
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.sweeping import Tensors

Read: TypeAlias = Callable[[str, slice | None], torch.Tensor]
"""From a name, and a range of rows or None, to a tensor in memory of its own."""


class Fetching:
    """Reads both models, and keeps what there is room for.

    Args:
        problem: shapes, and where units are.
        reference: reads tensors of the reference.
        model: reads tensors of the model.
        kept: names of the tensors that stay in memory once they were read whole.

    Attributes:
        fetched: bytes that were read; whoever counts may set it back to 0.
    """

    def __init__(
        self, problem: FileProblem, reference: Read, model: Read, kept: Collection[str]
    ) -> None:
        self._problem, self._reference, self._model = problem, reference, model
        self._kept = frozenset(kept)
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
