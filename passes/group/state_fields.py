"""Bring what operators impose on a state tensor into the tensor's own axes.

Operators read parameters through views: transposed, split into groups, cut into chunks. An
imposition addresses elements through the strides of such a view; here it becomes an array of labels
over some of the tensor's own axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
import torch

from fxrebasin.passes.fields.constraints import Imposition
from fxrebasin.passes.fields.elements import addresses_of
from fxrebasin.passes.fields.fields import positions
from fxrebasin.passes.fields.labels import NONE
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints


@dataclass(frozen=True, eq=False)
class StateField:
    """Labels over some axes of a state tensor; `values` has one dimension for each of `axes`.

    `region` restricts other axes to some of their positions.
    """

    axes: tuple[int, ...]
    values: Ints
    region: tuple[tuple[int, tuple[int, ...]], ...]
    reason: str
    origin: int


def state_fields(
    ledger: Ledger, shapes: Mapping[str, Sequence[int]]
) -> dict[str, list[StateField]]:
    """All fields of all state tensors, in the tensors' own axes."""
    share_between_tied_elements(ledger)
    return {
        state: _merged(ledger, [_located(tuple(shape), item) for item in impositions], shape)
        for state, shape in shapes.items()
        for impositions in [ledger.impositions.get(state, [])]
    }


def remember_parts(
    ledger: Ledger, shapes: Mapping[str, Sequence[int]], fields: Mapping[str, list[StateField]]
) -> None:
    """Units of a state tensor that lie in a part that was read by itself differ from the others."""
    for state, impositions in ledger.impositions.items():
        shape = tuple(shapes[state])
        for part in dict.fromkeys(_part(shape, item.view) for item in impositions):
            for field in fields[state] if part else ():
                at = {axis: np.array(positions) for axis, positions in part}
                chosen = [at.get(axis, np.arange(shape[axis])) for axis in field.axes]
                if at.keys() & set(field.axes):
                    ledger.remember_units(field.values[np.ix_(*chosen)])


def _part(shape: tuple[int, ...], view: torch.Tensor) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Positions along those axes of a tensor that a view does not reach all of.

    A view whose axes run across several of the tensor's is laid onto these element by element, so
    that its labels say which part it is.
    """
    footprint = _footprint(shape, tuple(view.shape), view.stride(), int(view.storage_offset()), ())
    return () if footprint is None else footprint.region


def share_between_tied_elements(ledger: Ledger) -> None:
    """State tensors that are added element by element carry each other's labels."""
    for first, second in ledger.element_ties:
        if _whole(first.view) and _whole(second.view) and first.view.shape == second.view.shape:
            ours = ledger.impositions.setdefault(first.state, [])
            theirs = ledger.impositions.setdefault(second.state, [])
            ours_before = list(ours)
            ours += theirs
            theirs += ours_before
        else:
            for item in (first, second):
                for axis in item.axes:
                    reason = "added element by element to another parameter"
                    size = item.view.shape[axis]
                    ledger.impose(item, positions(item.view.ndim, axis, size, reason))


def _whole(view: torch.Tensor) -> bool:
    return bool(view.is_contiguous()) and view.storage_offset() == 0


@cache
def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of a shape, in elements."""
    return torch.empty(shape, device="meta").stride()


def _located(shape: tuple[int, ...], item: Imposition) -> StateField:
    """One imposition in the tensor's own axes."""
    view, labels = item.view, item.values.numpy()
    varying = tuple(axis for axis, size in enumerate(labels.shape) if size > 1)
    if tuple(view.shape) == shape and view.stride() == contiguous_strides(shape) and _whole(view):
        values = labels.reshape([shape[axis] for axis in varying])
        return StateField(varying, values, (), item.reason, item.origin)
    footprint = _footprint(
        shape, tuple(view.shape), view.stride(), int(view.storage_offset()), varying
    )
    if footprint is None:
        return _scattered(shape, item)
    return StateField(
        footprint.axes,
        _values_on(footprint, view.shape, labels),
        footprint.region,
        item.reason,
        item.origin,
    )


@dataclass(frozen=True, eq=False)
class _Footprint:
    """Where the labels of a view go in the tensor that it is a view of.

    Attributes:
        axes: of the tensor, along which the labels vary.
        order: the axes of the view that lie inside these.
        sizes: of the tensor, along its axes.
        grids: the positions along these that the view reaches; None if it is all of them, in order.
        region: positions along other axes, where the view does not reach all of them.
    """

    axes: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    grids: tuple[Ints, ...] | None
    region: tuple[tuple[int, tuple[int, ...]], ...]


@lru_cache(maxsize=4096)
def _footprint(
    shape: tuple[int, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    offset: int,
    varying: tuple[int, ...],
) -> _Footprint | None:
    """Remembered, since layers repeat; None if an axis of the view runs across several axes.

    Args:
        shape: of the tensor.
        sizes: of the view.
        steps: the view's strides.
        offset: where in the tensor the view begins.
        varying: the axes of the view along which labels vary.
    """
    strides = contiguous_strides(shape)
    inside: dict[int, list[int]] = {}
    for axis, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        if size == 1 or step == 0:
            continue
        inner = owner(shape, size, step)
        if inner is None:
            return None
        inside.setdefault(inner, []).append(axis)
    start = np.unravel_index(offset, shape) if shape else []
    covered = []
    for j in range(len(shape)):
        view_axes = [(sizes[axis], steps[axis] // strides[j]) for axis in inside.get(j, [])]
        covered.append(_covered(view_axes, int(start[j])))
    axes = tuple(j for j in sorted(inside) if set(varying) & set(inside[j]))
    region = tuple(
        (j, tuple(np.sort(covered[j]).tolist()))
        for j, size in enumerate(shape)
        if j not in axes and size > 1 and covered[j].size < size
    )
    grids = tuple(covered[j] for j in axes)
    whole = all(np.array_equal(covered[j], np.arange(shape[j])) for j in axes)
    order = tuple(axis for j in axes for axis in inside[j])
    return _Footprint(axes, order, tuple(shape[j] for j in axes), None if whole else grids, region)


def owner(shape: Sequence[int], size: int, stride: int) -> int | None:
    """The axis of a contiguous tensor that an axis of a view of it lies within, if just one."""
    strides = contiguous_strides(tuple(shape))
    for j, (length, step) in enumerate(zip(shape, strides, strict=True)):
        if length > 1 and step <= stride < step * length and stride % step == 0:
            return j if (size - 1) * stride < step * length else None
    return None


def _covered(view_axes: Sequence[tuple[int, int]], start: int) -> Ints:
    """Positions along one tensor axis that a view reaches, in the view's order.

    Args:
        view_axes: sizes and steps of the view's axes inside it.
        start: the first position.
    """
    grid = np.array(start, dtype=np.int64)
    for size, step in view_axes:
        grid = np.add.outer(grid, np.arange(size) * step)
    return grid.reshape(-1)


def _values_on(footprint: _Footprint, sizes: Sequence[int], labels: Ints) -> Ints:
    """Labels over whole axes of the tensor, `NONE` where the view does not reach."""
    chosen = set(footprint.order)
    full = np.broadcast_to(labels, [n if axis in chosen else 1 for axis, n in enumerate(sizes)])
    rest = [axis for axis in range(full.ndim) if axis not in chosen]
    ordered = full.transpose([*footprint.order, *rest])
    if footprint.grids is None:
        return ordered.reshape(footprint.sizes)
    values = np.full(footprint.sizes, NONE, dtype=np.int64)
    values[np.ix_(*footprint.grids)] = ordered.reshape([grid.size for grid in footprint.grids])
    return values


def _scattered(shape: Sequence[int], item: Imposition) -> StateField:
    """The general case: a view axis that runs across several axes of the tensor."""
    values = np.full(int(np.prod(shape)), NONE, dtype=np.int64)
    values[addresses_of(item.view)] = item.values.expand(item.view.shape).reshape(-1).numpy()
    return squeezed(
        StateField(tuple(range(len(shape))), values.reshape(shape), (), item.reason, item.origin)
    )


def squeezed(item: StateField) -> StateField:
    """Forget axes along which the labels do not vary."""
    axes, values = list(item.axes), item.values
    for index in reversed(range(values.ndim)):
        first = values.take([0], axis=index)
        if (values == first).all():
            values = first.squeeze(index)
            del axes[index]
    return replace(item, axes=tuple(axes), values=values)


def _merged(ledger: Ledger, found: list[StateField], shape: Sequence[int]) -> list[StateField]:
    """Join pieces that cover different parts of the tensor."""
    whole = [item for item in found if item.axes and not item.region]
    parts = [item for item in found if item.region]
    groups: dict[object, list[StateField]] = {}
    for item in parts:
        key = (item.axes, tuple(j for j, _ in item.region), ledger.find(item.values).tobytes())
        groups.setdefault(key, []).append(item)
    for members in groups.values():
        whole += _united(members, shape)
    return [squeezed(item) for item in whole]


def _united(members: list[StateField], shape: Sequence[int]) -> list[StateField]:
    """The same labels on several regions: one field, if the regions fill their axis."""
    first = members[0]
    if len(first.region) == 1:
        axis = first.region[0][0]
        covered = {p for item in members for p in item.region[0][1]}
        if len(covered) == shape[axis]:
            return [replace(first, region=())]
    return [_over_all(item, shape) for item in members]


def _over_all(item: StateField, shape: Sequence[int]) -> StateField:
    """Turn a region into labels that are `NONE` outside it."""
    extra = [j for j, _ in item.region]
    axes = sorted([*item.axes, *extra])
    values = np.full([shape[j] for j in axes], NONE, dtype=np.int64)
    chosen = dict(item.region)
    index = np.ix_(*[np.array(chosen[j]) if j in chosen else np.arange(shape[j]) for j in axes])
    own = item.values.reshape([1 if j in chosen else shape[j] for j in axes])
    values[index] = own
    return StateField(tuple(axes), values, (), item.reason, item.origin)
