"""Which permutation classes the units of a tensor belong to, for every tensor of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fxrebasin.layout import AxisGroup, Layout, PermutationClass, Piece
from fxrebasin.passes.fields.fields import Labels, Value
from fxrebasin.passes.fields.labels import RIGID
from fxrebasin.passes.fields.rows import Ints
from fxrebasin.passes.group.state_fields import StateField, owner
from fxrebasin.passes.propagate.propagation import Propagation


class UnitClasses:
    """Looks up *outermost* classes: the heads, where dimensions inside heads move as well."""

    def __init__(
        self,
        propagation: Propagation,
        fields: Mapping[str, Sequence[StateField]],
        classes: Sequence[PermutationClass],
        layout: Layout,
    ) -> None:
        self._ledger = propagation.ledger
        self._shapes = propagation.shapes
        self._names = [c.name for c in classes]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._of_axis: dict[tuple[str, int], list[str]] = {}
        for c in classes:
            for axis in c.axes if not c.within else ():
                self._of_axis.setdefault(axis, []).append(c.name)
        self._of_unit = np.full(self._ledger.size, RIGID, np.int64)
        for state, groups in layout.items():
            for group in groups:
                self._read(state, group, fields[state])
        self._spread()

    def of_value(self, value: Value) -> tuple[str, ...]:
        """The classes along the axes of a tensor, in the order of the axes."""
        found: dict[str, None] = {}
        for item in sorted(value.fields, key=lambda item: item.axes):
            if isinstance(item, Labels):
                units = self._ledger.find(item.values.reshape(-1).numpy())
                numbers = self._of_unit[units[units >= 0]]
                first = np.unique(numbers, return_index=True)[1]
                order = [int(number) for number in numbers[np.sort(first)]]
                found.update(dict.fromkeys(self._names[n] for n in order if n != RIGID))
                continue
            shape = self._shapes[item.state]
            for axis in item.axes:
                own = owner(shape, item.view.shape[axis], item.view.stride(axis))
                if own is not None:
                    found.update(dict.fromkeys(self._of_axis.get((item.state, own), ())))
        return tuple(found)

    def of_states(self, states: Iterable[str]) -> tuple[str, ...]:
        """The classes along the axes of state tensors."""
        axes = [(state, axis) for state in states for axis in range(len(self._shapes[state]))]
        return tuple(dict.fromkeys(name for axis in axes for name in self._of_axis.get(axis, ())))

    def _read(self, state: str, group: AxisGroup, fields: Sequence[StateField]) -> None:
        """Note the classes of the units that lie on one group of axes."""
        sizes = [self._shapes[state][axis] for axis in group.axes]
        classes = np.full(int(np.prod(sizes)), RIGID, np.int64)
        for piece in group.pieces:
            name = _outermost(piece)
            if name is not None:
                classes[piece.positions.reshape(-1)] = self._index[name]
        for item in fields:
            if set(item.axes) <= set(group.axes):
                shape = [n if a in item.axes else 1 for a, n in zip(group.axes, sizes, strict=True)]
                labels = np.broadcast_to(item.values.reshape(shape), sizes).reshape(-1)
                units = self._ledger.find(labels)
                known = (units >= 0) & (classes != RIGID)
                self._of_unit[units[known]] = classes[known]

    def _spread(self) -> None:
        """Blocks of units, such as heads, that no state tensor names, are of their units' class."""
        changed = True
        while changed:
            changed = False
            for edge in self._ledger.edges:
                ends = self._ledger.find(edge.children), self._ledger.find(edge.parents)
                for known, unknown in (ends, ends[::-1]):
                    changed |= self._copy(known, unknown)

    def _copy(self, known: Ints, unknown: Ints) -> bool:
        inside = (known >= 0) & (unknown >= 0)
        known, unknown = known[inside], unknown[inside]
        new = (self._of_unit[known] != RIGID) & (self._of_unit[unknown] == RIGID)
        self._of_unit[unknown[new]] = self._of_unit[known[new]]
        return bool(new.any())


def _outermost(piece: Piece) -> str | None:
    named = [slot for slot in piece.slots if slot.class_name is not None]
    return next((slot.class_name for slot in sorted(named, key=lambda s: len(s.within))), None)
