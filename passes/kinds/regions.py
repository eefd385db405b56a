"""Which parts of a bias are read apart, such as those of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxrebasin.kinds import Place
from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import Mark, Value
from fxrebasin.passes.kinds.shifts import MOVES, SPLITS
from fxrebasin.passes.kinds.walk import Walk, name_of, shape_of
from fxrebasin.passes.rules.scaling import Scaling


@dataclass
class _Readers(Analysis):
    """Follows the elements of a bias, and notes by which operators each is read.

    Attributes:
        size: the number of elements.
        readers: numbers of operators, in a row for each element.
    """

    size: int
    at: object = ""
    readers: list[list[int]] = field(default_factory=list)
    _numbers: dict[Any, int] = field(default_factory=dict)

    def kept(self, mark: Mark) -> None:
        """See `Analysis`."""
        number = self._numbers.setdefault(self.node, len(self._numbers))
        for unit in mark.units[mark.units >= 0].unique().tolist():
            self.readers[unit].append(number)

    stays = kept
    carried = kept
    largest = kept
    summed = kept
    centred = kept

    def scaled(self, mark: Mark, scaling: Scaling) -> None:
        """See `Analysis`."""
        self.kept(mark)

    def joined(self, one: Mark, two: Mark) -> None:
        """See `Analysis`."""
        self.kept(one)
        self.kept(two)

    multiplied = joined
    contracted = joined

    def beside(self, mark: Mark) -> None:
        """See `Analysis`: something is added, which is no reading."""

    def uneven(self, mark: Mark, other: Any, name: str) -> None:
        """See `Analysis`: the same, if it is added."""
        if name != "add":
            self.kept(mark)

    def collected(self, one: Value, two: Value, name: str) -> Value | None:
        """See `Analysis`: elements stay where they are if nothing of the bias is added to them."""
        return (*one, *two) if name == "add" and not (one and two) else None


def is_split(graph: FunctionalGraph, name: str) -> bool:
    """Whether what a bias is added to is cut into parts before anything else is done to it.

    Args:
        graph: of the model.
        name: of the parameter.
    """
    added: list[fx.Node] = []
    seen = [graph.state[name]]
    while seen:
        node = seen.pop()
        for user in node.users:
            operator = name_of(user)
            if operator in SPLITS or operator in ("slice", "select", "index"):
                return True
            if operator in MOVES or (operator == "add" and not added):
                seen.append(user)
                added += [user] if operator == "add" else []
    return False


def read_apart(graph: FunctionalGraph, name: str) -> list[Tensor]:
    """The positions of each part of a bias that is read by operators of its own.

    Args:
        graph: of the model.
        name: of the parameter, which has one axis.
    """
    node = graph.state[name]
    [size] = shape_of(node)
    readers = _Readers(size, readers=[[] for _ in range(size)])
    walk = Walk(graph, readers)
    walk.values[node] = [(Mark(torch.arange(size), None, Place(name, 0, 0, 0, 0)),)]
    walk.run()
    parts: dict[tuple[int, ...], list[int]] = {}
    for element, own in enumerate(readers.readers):
        parts.setdefault(tuple(own), []).append(element)
    return [torch.tensor(part) for part in parts.values()]
