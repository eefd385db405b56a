"""Lay classes onto the axes of state tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from fxrebasin.layout import AxisGroup, Piece, Slab, Slot
from fxrebasin.passes.fields.rows import Ints, alike, distinct, row_codes
from fxrebasin.passes.group.classes import Column, IrregularError, Motion, combine
from fxrebasin.passes.group.state_fields import StateField


@dataclass(frozen=True, eq=False)
class UnnamedGroup:
    """Axes of a state tensor that move together: an `AxisGroup` before classes have names.

    Each piece: its columns (class index or None, size, within) and flat positions.
    """

    axes: tuple[int, ...]
    pieces: tuple[tuple[tuple[Column | None, ...], Ints], ...]
    uncounted: tuple[Slab, ...] = ()


def axis_groups(fields: Sequence[StateField], ndim: int) -> list[tuple[int, ...]]:
    """Axes that some field varies along together."""
    if all(len(item.axes) < 2 for item in fields):
        return [(axis,) for axis in range(ndim)]
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(ndim))
    for item in fields:
        graph.add_edges_from(zip(item.axes, item.axes[1:], strict=False))
    return sorted(tuple(sorted(group)) for group in nx.connected_components(graph))


def group_labels(
    fields: Sequence[StateField], axes: tuple[int, ...], shape: Sequence[int]
) -> list[Ints]:
    """The fields along some axes, with a dimension for each of these."""
    return [
        item.values.reshape([shape[axis] if axis in item.axes else 1 for axis in axes])
        for item in fields
        if set(item.axes) <= set(axes)
    ]


def group_columns(
    fields: Sequence[StateField], axes: tuple[int, ...], shape: Sequence[int]
) -> list[Ints]:
    """The labels of all positions of some axes, one flat column per field."""
    sizes = [shape[axis] for axis in axes]
    return [
        np.broadcast_to(labels, sizes).reshape(-1) for labels in group_labels(fields, axes, shape)
    ]


def unnamed_group(
    moves: Motion, columns: Sequence[Ints], axes: tuple[int, ...]
) -> UnnamedGroup | None:
    """Find which positions of some axes which coordinates move.

    Args:
        columns: for every position, numbers of coordinates (see `Motion`) or rigid labels.
    """
    kinds = [moves.kind_of(column) for column in columns]
    pieces = []
    for where in alike(kinds):
        part = list(zip(kinds, columns, strict=True))
        if where.size < columns[0].size:
            part = [(kind[where], column[where]) for kind, column in part]
        free, along = _coordinates_of_codes(moves, part)
        if free:
            rigid = [column for kind, column in part if kind[0] < 0]
            pieces += _pieces(free, along, rigid, where)
    return UnnamedGroup(axes, tuple(pieces)) if pieces else None


def _coordinates_of_codes(
    moves: Motion, columns: Sequence[tuple[Ints, Ints]]
) -> tuple[tuple[Column, ...], list[Ints]]:
    blocks = []
    for kinds, codes in columns:
        kind = int(kinds[0])
        if kind >= 0:
            blocks.append((moves.kinds[kind], moves.coordinates(kind, codes)))
    return combine(blocks)


def _pieces(
    free: tuple[Column, ...], along: Sequence[Ints], rigid: Sequence[Ints], where: Ints
) -> list[tuple[tuple[Column | None, ...], Ints]]:
    """Grids of positions over the coordinates, one for each tuple of rigid labels if needed.

    Args:
        free: the coordinates.
        along: their values at the positions.
        rigid: columns of rigid labels.
        where: the positions, ascending.
    """
    sizes = [column.size for column in free]
    code = np.ravel_multi_index(tuple(along), sizes)
    full = int(np.prod(sizes, dtype=np.int64))
    counts = np.bincount(code, minlength=full)
    if where.size == full and (counts == 1).all():
        positions = np.empty(full, np.int64)
        positions[code] = where
        return [piece_of(free, positions.reshape(*sizes, 1))]
    tag = row_codes(rigid) if rigid else np.zeros(where.size, np.int64)
    if (counts == counts[0]).all():
        order = np.lexsort((tag, code))
        tags = tag[order].reshape(full, -1)
        if (tags == tags[0]).all():
            return [piece_of(free, where[order].reshape(*sizes, int(counts[0])))]
    pieces = []
    for value in distinct(tag):
        chosen = tag == value
        order = np.argsort(code[chosen], kind="stable")
        positions = where[chosen][order]
        if (
            positions.size % full
            or (np.bincount(code[chosen], minlength=full) != positions.size // full).any()
        ):
            raise IrregularError(np.zeros(0, np.int64), "positions that are not a full grid")
        pieces.append(piece_of(free, positions.reshape(*sizes, positions.size // full)))
    return pieces


def piece_of(free: tuple[Column, ...], positions: Ints) -> tuple[tuple[Column | None, ...], Ints]:
    """A piece of positions that have a dimension for each column, and one for repetitions."""
    if positions.shape[-1] == 1:
        return free, positions[..., 0]
    return (*free, None), positions


def named_group(unnamed: UnnamedGroup, names: Mapping[int, str]) -> AxisGroup | None:
    """The axis group with class names in place of indices; None when no class has a name."""
    pieces = []
    for columns, positions in unnamed.pieces:
        slots = tuple(
            Slot(None, positions.shape[index])
            if column is None or column.index not in names
            else Slot(names[column.index], column.size, column.within)
            for index, column in enumerate(columns)
        )
        if any(slot.class_name is not None for slot in slots):
            pieces.append(Piece(slots, np.ascontiguousarray(positions, dtype=np.int64)))
    return AxisGroup(unnamed.axes, tuple(pieces), unnamed.uncounted) if pieces else None
