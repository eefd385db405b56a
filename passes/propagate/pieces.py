"""Tensors that are written to in parts, through views.

What was written to each part is kept as it is, and only what is read is put together. A loop that
fills a tensor position by position and reads it at the end thus costs as much as the tensor, not as
much once per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxrebasin.passes.fields.elements import addresses_of, labelled
from fxrebasin.passes.fields.fields import Labels, Value, field_of
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.labels import NONE, rigid_labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.reshaping import reshape_value
from fxrebasin.passes.fields.rows import Ints, distinct

_SEGMENT = "part of a tensor written to"


@dataclass(frozen=True, eq=False)
class _Part:
    """What a view was given; `addresses` are those of its elements, in order."""

    view: Tensor
    addresses: Ints
    value: Value


class Pieces:
    """What a tensor holds: partly what it held before, partly what was written through its views
    since.

    Args:
        form: a meta tensor of the size and strides of the whole.
        before: what it held before.
    """

    def __init__(self, form: Tensor, before: Value) -> None:
        self.form = form
        addresses = addresses_of(form)
        self._parts = [_Part(form, addresses, before)]
        self._index: dict[object, int] = {}
        self._owner = np.zeros(int(addresses.max(initial=0)) + 1, np.int64)

    def write(self, view: Tensor, value: Value) -> None:
        """New content is written through a view.

        Args:
            view: of the form, as the view is of the whole.
            value: the content.
        """
        key = (view.storage_offset(), view.shape, view.stride())
        index = self._index.setdefault(key, len(self._parts))
        part = _Part(view, addresses_of(view), value)
        self._parts[index : index + 1] = [part]
        self._owner[part.addresses] = index

    def read(self, ledger: Ledger, view: Tensor) -> Value | None:
        """What a view holds; None if that is what it held before.

        Args:
            ledger: where constraints are recorded.
            view: of the form, as the view is of the whole.
        """
        places = addresses_of(view)
        if not places.size:
            return None
        owners = self._owner[places]
        present = distinct(owners).tolist()
        if present == [0]:
            return None
        only = self._parts[present[0]]
        if len(present) == 1 and np.array_equal(only.addresses, places):
            return reshape_value(ledger, only.value, tuple(view.shape))
        found = [*self._contents(ledger, present, places, view), _segments(owners, view)]
        fields = [item for item in found if item.axes]
        if not np.array_equal(places, self._parts[0].addresses):
            for item in found:
                ledger.remember(item)
        return Value(tuple(view.shape), join(ledger, fields))

    def _contents(
        self, ledger: Ledger, present: Sequence[int], places: Ints, view: Tensor
    ) -> list[Labels]:
        """The fields of the parts that a view is made of, side by side.

        Fields of different parts that vary along the same axes of the whole become one, which says
        nothing of parts without such a field.
        """
        parts = {index: self._parts[index] for index in present}
        where = self._positions(parts, places)
        rows: dict[tuple[tuple[int, ...], int], dict[int, Labels]] = {}
        for index, part in parts.items():
            counts: dict[tuple[int, ...], int] = {}
            for item in _labels(ledger, part.value):
                axes = tuple(_axis_in(self.form, part.view, axis) for axis in item.axes)
                counts[axes] = counts.get(axes, 0) + 1
                rows.setdefault((axes, counts[axes]), {})[index] = item
        return [_side_by_side(parts, rows[key], where, view) for key in sorted(rows)]

    def _positions(self, parts: dict[int, _Part], places: Ints) -> Ints:
        """For each place, its position in the parts laid end to end."""
        position = np.zeros(self._owner.size, np.int64)
        start = 0
        for index, part in parts.items():
            mine = self._owner[part.addresses] == index
            position[part.addresses[mine]] = start + np.flatnonzero(mine)
            start += part.addresses.size
        return position[places]


def _labels(ledger: Ledger, value: Value) -> list[Labels]:
    return [part for item in value.fields for part in labelled(ledger, item)]


def _axis_in(whole: Tensor, view: Tensor, axis: int) -> int:
    """The axis of the whole that an axis of a view runs along; if none, a number beyond all."""
    size, stride = view.shape[axis], view.stride(axis)
    for own in sorted(range(whole.ndim), key=whole.stride, reverse=True):
        step = whole.stride(own)
        if whole.shape[own] > 1 and 0 < step <= stride:
            within = stride % step == 0 and (size - 1) * stride < step * whole.shape[own]
            return own if within else whole.ndim + axis
    return whole.ndim + axis


def _expanded(item: Labels, part: _Part) -> Ints:
    return item.values.expand(part.value.shape).reshape(-1).numpy()


def _side_by_side(
    parts: dict[int, _Part], row: dict[int, Labels], where: Ints, view: Tensor
) -> Labels:
    source = np.concatenate(
        [
            _expanded(row[index], part) if index in row else np.full(part.addresses.size, NONE)
            for index, part in parts.items()
        ]
    )
    reason = next((item.reason for item in row.values() if item.reason), "")
    return _field(source[where], view, reason)


def _segments(owners: Ints, view: Tensor) -> Labels:
    """Which part each position is of."""
    return _field(rigid_labels(owners), view, _SEGMENT)


def _field(labels: Ints, view: Tensor, reason: str) -> Labels:
    return field_of(torch.from_numpy(labels).view(tuple(view.shape)), reason)
