"""Elements that act on one state again and again, differentiably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.charts import Element
from fxrebasin.groups import Groups
from fxrebasin.layout import PermutationClass
from fxrebasin.places import positions_of


@dataclass(frozen=True)
class _Part:
    """A part of a state tensor that units of a class lie on.

    Attributes:
        state: name of the tensor.
        order: its axes, those of the axis group first.
        total: how many positions these have.
        positions: of units, flat, of shape (copies, units, places of each).
        back: where each position of the group is in those, if they are all of them.
        variance: of matrices, or the power to which a number is taken.
    """

    state: str
    order: tuple[int, ...]
    total: int
    positions: Tensor
    back: Tensor | None
    variance: int


class Action:
    """What `fxrebasin.acting.acted` does, prepared, on a state whose factors of norms are ones.

    Args:
        groups: that act on it.
        classes: of its symmetry, with those that are turned in pairs.
        shapes: of the state tensors, by name.
        device: of the states.
    """

    def __init__(
        self,
        groups: Groups,
        classes: Sequence[PermutationClass],
        shapes: Mapping[str, Sequence[int]],
        device: torch.device | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._parts = {c.name: self._parts_of(groups, c, classes, shapes) for c in classes}

    def __call__(
        self, state: Mapping[str, Tensor], elements: Mapping[str, Element]
    ) -> dict[str, Tensor]:
        """The state after elements acted on it; tensors that stay are those of `state`.

        Args:
            state: of any floating dtype.
            elements: by the name of the class.
        """
        found = dict(state)
        for name, element in elements.items():
            for part in self._parts[name]:
                if part.state in found:
                    found[part.state] = _moved(found[part.state], part, element)
        return found

    def _parts_of(
        self,
        groups: Groups,
        c: PermutationClass,
        classes: Sequence[PermutationClass],
        shapes: Mapping[str, Sequence[int]],
    ) -> list[_Part]:
        own = groups.kinds[c.name]
        layout = groups.layout_of(c.name)
        sizes = {item.name: item.size for item in classes}
        found = []
        variances = {place: part.variance for place, part in own.parts.items()} or own.scales
        for place, variance in variances.items():
            if variance:
                shape = shapes[place.state]
                group = layout[place.state][place.group]
                rest = (axis for axis in range(len(shape)) if axis not in group.axes)
                order = (*group.axes, *rest)
                total = 1
                for axis in group.axes:
                    total *= shape[axis]
                positions = positions_of(layout, place, c, sizes).to(self._device)
                flat = positions.flatten()
                back = flat.argsort() if len(flat) == total else None
                found.append(_Part(place.state, order, total, positions, back, variance))
        return found


def _moved(tensor: Tensor, part: _Part, element: Element) -> Tensor:
    moved = tensor.permute(part.order)
    flat = moved.reshape(part.total, -1)
    rows = flat[part.positions.flatten()].reshape(*part.positions.shape, flat.shape[1])
    matrix = (element.own if part.variance > 0 else element.contragredient).to(rows.dtype)
    if matrix.dim() == 2:
        size = matrix ** abs(part.variance)
        rows = rows * size[:, :, None, None]
    else:
        copies, units = part.positions.shape[:2]
        rows = torch.bmm(matrix, rows.reshape(copies, units, -1)).reshape(rows.shape)
    rows = rows.reshape(-1, flat.shape[1])
    if part.back is None:
        flat = flat.index_copy(0, part.positions.flatten(), rows)
    else:
        flat = rows[part.back]
    back = sorted(range(len(part.order)), key=part.order.__getitem__)
    return flat.reshape(moved.shape).permute(back)
