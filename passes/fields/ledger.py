"""What propagation records: units, and everything that constrains their permutations.

Five kinds of entry describe the constraints; `passes.group` solves for the permutations that
satisfy all of them:

- *tie*: two units always move together (union-find);
- *pin*: a unit never moves;
- *edge*: a child unit moves inside its parent (a head and the dimensions in it);
- *relation*: a set of label tuples that occur together at the positions of one tensor, and that a
  permutation has to map onto itself;
- *imposition*: labels laid onto the elements of a state tensor by an operator that reads it.

What follows for fields when tensors meet, or are summed up, is worked out in the other files of
this folder, which write it down here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fxrebasin.passes.fields.constraints import Edge, Imposition, Pin
from fxrebasin.passes.fields.fields import Elements, Labels, identity
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.fields.rows import Ints, distinct
from fxrebasin.passes.fields.units import Units

_Made = TypeVar("_Made")


@dataclass
class Ledger(Units):
    """All units and constraints met so far; `origin` is the operator being propagated."""

    origins: list[Origin] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    relations: dict[tuple[object, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    members: list[Tensor] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    used_parts: list[Elements] = field(default_factory=list)
    impositions: dict[str, list[Imposition]] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    taps: list[Elements] = field(default_factory=list)
    element_ties: list[tuple[Elements, Elements]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    _imposed: set[object] = field(default_factory=set)
    _made: dict[object, tuple[object, object]] = field(default_factory=dict)
    _earlier: int | None = None

    def fork(self) -> Ledger:
        """A copy that can be added to; labels, which never change, are shared."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set | np.ndarray):
                setattr(made, name, value.copy())
        made.impositions = {state: list(items) for state, items in self.impositions.items()}
        return made

    @property
    def origin(self) -> int:
        """Index of the operator being propagated."""
        return len(self.origins) - 1 if self._earlier is None else self._earlier

    @contextmanager
    def at(self, origin: int) -> Iterator[None]:
        """What is recorded inside is due to an operator that was propagated before."""
        before, self._earlier = self._earlier, origin
        try:
            yield
        finally:
            self._earlier = before

    def pin(self, units: Ints, reason: str) -> None:
        """Record that units never move; rigid labels are passed over."""
        free = units[units >= 0]
        if free.size:
            self.pins.append(Pin(distinct(free), reason, self.origin))

    def nest(self, children: Ints, parents: Ints) -> None:
        """Record that each unit moves inside the one at the same index."""
        self.edges.append(Edge(children, parents))

    def use(self, labels: Labels) -> None:
        """Record that something is computed from the values of these units."""
        if not labels.rigid:
            self.used.append(labels.values)

    def use_units(self, units: Tensor) -> None:
        """The same, of units of which no field was made yet."""
        self.used.append(units)

    def relate(self, *columns: Labels) -> None:
        """Record that these fields label the positions of one tensor together."""
        columns = _connected_to_free(columns)
        if len(columns) < 2:
            return
        tensors = tuple(column.values for column in columns)
        self.relations.setdefault(tuple(identity(values) for values in tensors), tensors)

    def remember(self, labels: Labels | None) -> None:
        """Record a selection of units: those in it differ from those that are not."""
        if labels is not None and not labels.rigid:
            self.members.append(labels.values)

    def remember_units(self, units: Ints) -> None:
        """Record a selection of units by their labels; rigid ones are passed over."""
        free = units[units >= 0]
        if free.size:
            self.members.append(torch.from_numpy(distinct(free)))

    def impose(self, elements: Elements, labels: Labels) -> None:
        """Lay labels onto the elements of a state tensor."""
        key = (
            elements.state,
            elements.view.storage_offset(),
            tuple(
                (elements.view.shape[axis], elements.view.stride(axis)) for axis in elements.axes
            ),
            identity(labels.values),
        )
        if key in self._imposed:
            return
        self._imposed.add(key)  # the imposition keeps the labels alive, and so their address
        self.impositions.setdefault(elements.state, []).append(
            Imposition(elements.view, labels.values, self.origin, labels.reason)
        )

    def places(self) -> set[object]:
        """The parts of state tensors that were read: name, offset, sizes and strides."""
        return {
            (state, view.storage_offset(), view.shape, view.stride())
            for state, items in self.impositions.items()
            for view in (item.view for item in items)
        }

    def once(self, key: object, make: Callable[[], _Made], alive: Sequence[Tensor] = ()) -> _Made:
        """What was made under a key before, or else is made now: units are made only once.

        Args:
            key: of what is made, and of what.
            make: makes it.
            alive: tensors whose `identity` is part of the key.
        """
        known = self._made.get(key)
        if known is None:
            known = self._made[key] = (alive, make())
        found: _Made = known[1]  # type: ignore[assignment]
        return found


def _connected_to_free(columns: Sequence[Labels]) -> tuple[Labels, ...]:
    """Columns that share axes with a free one, directly or through others; the rest say nothing."""
    axes = {axis for column in columns if not column.rigid for axis in column.axes}
    while True:
        found = tuple(column for column in columns if axes & set(column.axes))
        grown = axes.union(*(column.axes for column in found))
        if grown == axes:
            return found
        axes = grown
