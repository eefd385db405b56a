"""Lay coordinates onto all state tensors, once for labels that are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fxrebasin.passes.fields.labels import rigid_labels, rigid_labels_of_units
from fxrebasin.passes.fields.rows import (
    Ints,
    count_rows,
    distinct,
    from_last_to_first,
    memory,
    mix,
    row_codes,
    thinned,
)
from fxrebasin.passes.group.classes import IrregularError, Motion
from fxrebasin.passes.group.grids import UnnamedGroup, axis_groups, group_columns, unnamed_group
from fxrebasin.passes.group.state_fields import StateField, squeezed


class Placing(Protocol):
    """Where units go."""

    @property
    def motion(self) -> Motion:
        """The coordinates of all representatives, numbered."""

    @property
    def roots(self) -> Ints:
        """By unit, its representative."""

    @property
    def roles(self) -> Ints:
        """By unit, a number for its role."""


def lay_out(
    shapes: Mapping[str, Sequence[int]],
    moves: Placing,
    fields: Mapping[str, list[StateField]],
) -> dict[str, list[UnnamedGroup]]:
    """Which positions of state tensors which coordinates move.

    Raises:
        IrregularError: two positions that differ would have to move in the same way.
    """
    laying = _LayingOut(moves)
    found: dict[str, list[UnnamedGroup]] = {}
    alike: dict[object, list[UnnamedGroup]] = {}
    for state, items in fields.items():
        shape = tuple(shapes[state])
        key = (shape, *((item.axes, memory(item.values)) for item in items))
        if key not in alike:
            alike[key] = laying.groups(items, shape)
        if alike[key]:
            found[state] = alike[key]
    return found


class _LayingOut:
    """Lays coordinates onto the axes of state tensors."""

    def __init__(self, moves: Placing) -> None:
        self._motion, self._unit_roles = moves.motion, moves.roles
        self._codes = _codes_of_units(moves.roots, self._motion)
        self._known: dict[tuple[bytes, ...], UnnamedGroup | None] = {}

    def groups(self, fields: Sequence[StateField], shape: Sequence[int]) -> list[UnnamedGroup]:
        """The groups of axes of one tensor that move.

        Args:
            fields: the labels on the tensor.
            shape: of the tensor.

        Raises:
            IrregularError: two positions that differ would have to move in the same way.
        """
        coded = [self._squeezed(field) for field in fields]
        found = []
        for axes in axis_groups(coded, len(shape)):
            columns = group_columns(coded, axes, shape)
            if not any((column >= 0).any() for column in columns):
                continue
            try:
                if count_rows(columns) < columns[0].size:
                    raw = [f.values for f in fields]
                    roles = [self._roles(values) for values in raw]
                    columns = _told_apart(
                        columns,
                        _columns_on(axes, fields, roles, shape),
                        _columns_on(axes, fields, raw, shape),
                    )
                unnamed = self._group(columns, axes)
            except IrregularError as error:
                units = np.concatenate([f.values.reshape(-1) for f in fields])
                raise IrregularError(distinct(units[units >= 0]), error.reason) from error
            if unnamed is not None:
                found.append(replace(unnamed, axes=axes))
        return found

    def _squeezed(self, field: StateField) -> StateField:
        """The numbers of coordinates instead of labels, without axes along which they are the same.

        An axis stays where a unit that moves to other coordinates is somewhere else along it: then
        what moves along one axis does so along both. A roll of all elements has such rows.
        """
        labels = field.values
        if labels.ndim < 2:
            return squeezed(replace(field, values=self._coded(labels)))
        (few,) = thinned([labels])
        small = squeezed(replace(field, values=self._coded(few)))
        gone = [index for index, axis in enumerate(field.axes) if axis not in small.axes]
        if gone and (not small.axes or self._stay_along(few, small.values, gone)):
            at = tuple(0 if index in gone else slice(None) for index in range(labels.ndim))
            return replace(small, values=self._coded(labels[at]))
        return replace(field, values=self._coded(labels))

    def _stay_along(self, labels: Ints, codes: Ints, gone: Sequence[int]) -> bool:
        """Whether units have one role at each place along some axes, whatever their coordinates."""
        kept = [index for index in range(labels.ndim) if index not in gone]
        roles = self._roles(labels).transpose([*kept, *gone]).reshape(codes.size, -1)
        kinds = self._motion.kind_of(codes.reshape(-1))
        for kind in distinct(kinds[kinds >= 0]):
            rows = roles[kinds == kind]
            if not (rows == rows[0]).all():
                return False
        return True

    def _coded(self, values: Ints) -> Ints:
        if not self._codes.size:
            return values
        return np.where(values >= 0, self._codes[np.maximum(values, 0)], values)

    def _roles(self, values: Ints) -> Ints:
        return np.where(values >= 0, self._unit_roles[np.maximum(values, 0)], values)

    def _group(self, columns: list[Ints], axes: tuple[int, ...]) -> UnnamedGroup | None:
        key = tuple(column.tobytes() for column in columns)
        if key not in self._known:
            self._known[key] = unnamed_group(self._motion, columns, axes)
        return self._known[key]


def _codes_of_units(roots: Ints, moves: Motion) -> Ints:
    """By unit, the number of its coordinates; of those that cannot move, a rigid label."""
    codes = moves.codes[roots]
    return np.where(codes >= 0, codes, rigid_labels_of_units(roots))


def _columns_on(
    axes: tuple[int, ...],
    fields: Sequence[StateField],
    found: Sequence[Ints],
    shape: Sequence[int],
) -> list[Ints]:
    """A number for what stands at every position of some axes, one flat column for each field.

    A field that varies along other axes as well has a whole row there. `found` is, for each field,
    what stands in the place of its labels.
    """
    columns = []
    for field, values in zip(fields, found, strict=True):
        inside = [index for index, axis in enumerate(field.axes) if axis in axes]
        if not inside:
            continue
        outside = [index for index, axis in enumerate(field.axes) if axis not in axes]
        rows = values.transpose([*inside, *outside])
        sizes = [shape[axis] if axis in field.axes else 1 for axis in axes]
        rows = rows.reshape(*sizes, -1)
        if rows.shape[-1] > 1:
            rows = mix(rows, np.arange(rows.shape[-1])).sum(axis=-1, keepdims=True)
        full = np.broadcast_to(rows[..., 0], [shape[axis] for axis in axes])
        columns.append(full.reshape(-1).view(np.int64))
    return columns


def _told_apart(columns: list[Ints], roles: list[Ints], raw: list[Ints]) -> list[Ints]:
    """The columns, with the roles of units where ties made different positions look the same.

    Roles are numbered as they come, so that it does not show in the layout which numbers they had.
    """
    if count_rows(columns) == count_rows([*columns, *raw]):
        return columns
    marked = [*columns, rigid_labels(from_last_to_first(row_codes(roles)))]
    if count_rows(marked) < count_rows([*columns, *raw]):
        raise IrregularError(np.zeros(0, np.int64), "two positions of an axis that are tied")
    return marked
