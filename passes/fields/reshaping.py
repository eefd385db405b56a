"""Fields of tensors whose axes are merged and split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np

from fxrebasin.passes.fields.elements import separate
from fxrebasin.passes.fields.fields import (
    Field,
    Labels,
    Value,
    elements_of,
    identity,
    positions,
    reshape_groups,
    reshape_labels,
)
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import whole_view
from fxrebasin.passes.fields.rows import count_rows, thinned

_CORNER = 16


def reshape_field(
    ledger: Ledger, item: Field, before: Sequence[int], after: Sequence[int]
) -> list[Field]:
    """Reshape one field; several come out if no view of a state tensor has that shape."""
    if tuple(before) == tuple(after):
        return [item]
    if isinstance(item, Labels):
        found = _reshaped(ledger, item, tuple(before), tuple(after))
        return [] if found is None else [found]
    try:
        viewed = elements_of(item.state, whole_view(item, before).view(tuple(after)))
    except RuntimeError:
        together = [axes_in for axes_in, _ in reshape_groups(before, after)]
        return [
            part
            for labels in separate(ledger, item, together)
            for part in reshape_field(ledger, labels, before, after)
        ]
    return [] if viewed is None else [viewed]


def _reshaped(
    ledger: Ledger, item: Labels, before: tuple[int, ...], after: tuple[int, ...]
) -> Labels | None:
    """A field in another shape; remembered, since layers split positions in the same ways."""
    flags = (item.injective, item.rigid, item.reason)
    key = ("reshape", identity(item.values), flags, before, after)
    return ledger.once(key, lambda: reshape_labels(item, before, after), [item.values])


def reshape_fields(
    ledger: Ledger, fields: Iterable[Field], before: Sequence[int], after: Sequence[int]
) -> list[Field]:
    """Reshape fields of one tensor."""
    return [part for item in fields for part in reshape_field(ledger, item, before, after)]


def reshape_value(ledger: Ledger, value: Value, shape: Sequence[int]) -> Value:
    """Reshape all fields; axes that only hold positions become axes that only hold positions."""
    after = tuple(shape)
    if 0 in after:
        return Value(after)
    rigid, rest, opaque = _opaque_groups(value, after)
    fields = reshape_fields(ledger, rest, value.shape, after)
    for axes in opaque:
        for axis in axes:
            if after[axis] > 1:
                fields.append(positions(len(after), axis, after[axis], rigid))
    return Value(after, tuple(_with_plain_positions(fields, after)))


def _with_plain_positions(fields: list[Field], shape: tuple[int, ...]) -> list[Field]:
    """Replace rigid fields that tell apart all positions of some axes by one field per axis.

    Cutting an image into windows makes rows and columns vary along two axes each; that none of
    these positions can move is all that matters.
    """
    rigid = [item for item in fields if isinstance(item, Labels) and item.rigid]
    if all(len(item.axes) == 1 for item in rigid):
        return fields
    free = {axis for item in fields if item not in rigid for axis in item.axes}
    graph: nx.Graph[int] = nx.Graph()
    for item in rigid:
        nx.add_path(graph, item.axes)
    for axes in map(sorted, nx.connected_components(graph)):
        mine = [item for item in rigid if item.axes[0] in axes]
        if len(axes) > 1 and not free & set(axes) and _tell_apart(mine, axes, shape):
            fields = [item for item in fields if item not in mine]
            fields += [positions(len(shape), axis, shape[axis], mine[0].reason) for axis in axes]
    return fields


def _tell_apart(fields: Sequence[Labels], axes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether no two positions of the axes have the same labels in all fields.

    All positions may be many: two that are alike are mostly found along one axis or in a corner.
    """
    grid = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    columns = [item.values.numpy() for item in fields]
    corner = tuple(slice(_CORNER) for _ in grid)
    for part in ([item[corner] for item in columns], thinned(columns)):
        whole = np.broadcast_arrays(*part)
        if count_rows([item.reshape(-1) for item in whole]) < whole[0].size:
            return False
    return list(whole[0].shape) == grid  # else some axis has positions that are alike


def _opaque_groups(
    value: Value, after: tuple[int, ...]
) -> tuple[str, list[Field], list[tuple[int, ...]]]:
    """Groups of axes, all of them pinned positions, that a reshape merges or splits."""
    pinned = {
        item.axes[0]: item
        for item in value.fields
        if isinstance(item, Labels) and item.rigid and item.injective and len(item.axes) == 1
    }
    held = {axis for item in value.fields if item not in pinned.values() for axis in item.axes}
    opaque, gone, reason = [], set(), ""
    for axes_in, axes_out in reshape_groups(value.shape, after):
        moving = [axis for axis in axes_in if value.shape[axis] > 1]
        if len(axes_in) + len(axes_out) <= 2 or not moving:
            continue
        if all(axis in pinned and axis not in held for axis in moving):
            opaque.append(axes_out)
            gone |= set(moving)
            reason = reason or pinned[moving[0]].reason
    rest = [item for item in value.fields if not (set(item.axes) & gone)]
    return reason, rest, opaque
