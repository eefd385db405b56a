"""Lay coordinates onto all state tensors, once for labels that are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fxrebasin.passes.classes import IrregularError, Motion
from fxrebasin.passes.placing import Placement, axis_groups, group_columns, place
from fxrebasin.passes.rows import Ints, count_rows, distinct, row_codes
from fxrebasin.passes.state_fields import StateField, squeezed


def placements_of(
    shapes: Mapping[str, Sequence[int]],
    roots: Ints,
    moves: Motion,
    fields: Mapping[str, list[StateField]],
    unit_marks: Ints,
) -> dict[str, list[Placement]]:
    """Which positions of state tensors which coordinates move.

    Args:
        shapes: of the tensors.
        roots: the representatives of units.
        moves: how units move.
        fields: the labels on the tensors.
        unit_marks: what tells units apart that were tied.

    Raises:
        IrregularError: two positions that differ would have to move alike.
    """
    placer = _Placer(roots, moves, unit_marks)
    found: dict[str, list[Placement]] = {}
    alike: dict[object, list[Placement]] = {}
    for state, items in fields.items():
        shape = tuple(shapes[state])
        key = (shape, *((item.axes, _memory(item.values)) for item in items))
        if key not in alike:
            alike[key] = placer.placements(items, shape)
        if alike[key]:
            found[state] = alike[key]
    return found


def _memory(values: Ints) -> tuple[object, ...]:
    """Equal for arrays that are the same part of memory."""
    return (values.ctypes.data, values.shape, values.strides)


class _Placer:
    """Lays coordinates onto the axes of state tensors.

    Args:
        roots: the representatives of units.
        moves: how units move.
        unit_marks: what tells units apart that were tied.
    """

    def __init__(self, roots: Ints, moves: Motion, unit_marks: Ints) -> None:
        self._moves, self._marks = moves, unit_marks
        self._codes = _codes_of_units(roots, moves)
        self._placed: dict[tuple[bytes, ...], Placement | None] = {}

    def placements(self, fields: Sequence[StateField], shape: Sequence[int]) -> list[Placement]:
        """Those of one tensor.

        Args:
            fields: the labels on the tensor.
            shape: of the tensor.

        Raises:
            IrregularError: two positions that differ would have to move alike.
        """
        coded = [squeezed(replace(f, values=self._coded(f.values))) for f in fields]
        found = []
        for axes in axis_groups(coded, len(shape)):
            columns = group_columns(coded, axes, shape)
            if not any((column >= 0).any() for column in columns):
                continue
            try:
                placement = self._place(columns, group_columns(fields, axes, shape), axes)
            except IrregularError as error:
                units = np.concatenate([f.values.reshape(-1) for f in fields])
                raise IrregularError(distinct(units[units >= 0]), error.reason) from error
            if placement is not None:
                found.append(replace(placement, axes=axes))
        return found

    def _coded(self, values: Ints) -> Ints:
        if not self._codes.size:
            return values
        return np.where(values >= 0, self._codes[np.maximum(values, 0)], values)

    def _place(
        self, columns: list[Ints], raw: list[Ints], axes: tuple[int, ...]
    ) -> Placement | None:
        columns = _told_apart(columns, raw, self._marks)
        key = tuple(column.tobytes() for column in columns)
        if key not in self._placed:
            self._placed[key] = place(self._moves, columns, axes)
        return self._placed[key]


def _codes_of_units(roots: Ints, moves: Motion) -> Ints:
    """By unit, the number of its coordinates; of those that cannot move, a rigid label."""
    codes = moves.codes[roots]
    return np.where(codes >= 0, codes, -2 - roots - _RIGID)


_RIGID = 1 << 40
"""Keeps units that turned out to be fixed apart from labels that were rigid from the start."""


def _told_apart(columns: list[Ints], raw: list[Ints], unit_marks: Ints) -> list[Ints]:
    """The columns, with the marks of units where ties made two positions alike that differ."""
    count = count_rows(columns)
    if count == columns[0].size or not raw or count >= count_rows([*columns, *raw]):
        return columns
    seen = [np.where(column >= 0, unit_marks[np.maximum(column, 0)], column) for column in raw]
    marked = [*columns, -2 - row_codes(seen)]
    if count_rows(marked) < count_rows([*columns, *raw]):
        raise IrregularError(np.zeros(0, np.int64), "two positions of an axis that are tied")
    return marked
