"""What is left of a field when positions along some axes are no longer told apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxrebasin.passes.fields.elements import mark_part, units_along
from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    field_of,
    identity,
    positions,
)
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import (
    Ints,
    all_differ,
    distinct,
    multiset_hashes,
    row_codes,
    run_starts,
)

_EMPTY: Ints = np.zeros(0, np.int64)


def coarsen(ledger: Ledger, item: Field, kept: Collection[int]) -> tuple[Field, ...]:
    """What is left of a field when only the kept axes are looked at (the others get size 1).

    Where the field varies along kept and removed axes, the units at each kept position become the
    children of a new unit, and rigid labels beside them a field of their own. Nothing is left of a
    field that does not tell kept positions apart.
    """
    inside = tuple(axis for axis in item.axes if axis in kept)
    if len(inside) == len(item.axes):
        return (_reduced_to(item, kept),) if inside else ()
    if isinstance(item, Elements):
        if not inside:
            mark_part(ledger, item)
            return ()
        return (units_along(ledger, item, inside),)
    if not inside and (item.injective or item.rigid):
        return ()
    key = ("coarsen", identity(item.values), inside)
    return ledger.once(key, lambda: _coarsen_labels(ledger, item, inside), [item.values])


def _coarsen_labels(ledger: Ledger, item: Labels, kept: tuple[int, ...]) -> tuple[Labels, ...]:
    values = item.values
    removed = [axis for axis in item.axes if axis not in kept]
    shape = [1 if axis in removed else size for axis, size in enumerate(values.shape)]
    rows = values.permute([*kept, *removed, *_others(values.ndim, item.axes)])
    rows_np = rows.reshape(math.prod(values.shape[axis] for axis in kept), -1).numpy()
    if item.injective and int(rows_np.min()) >= 0:
        return _blocks(ledger, rows_np, shape, kept)
    if item.injective:
        sets, times, row_of = rows_np, np.ones(rows_np.shape[1], np.int64), np.arange(len(rows_np))
    else:
        sets, times, row_of = _sets(rows_np)
    row, units, count = _distinct_units(sets, times)
    # Added twice is not the same as added once.
    repeated = [count == times for times in distinct(count)] if not item.injective else []
    for same in repeated if len(repeated) > 1 else ():
        ledger.remember_units(units[same])
    if len(sets) == 1:
        return ()
    labels = positions(1, 0, len(sets), item.reason).values.clone()
    if units.size:
        parents, parent_of = np.unique(row, return_inverse=True)
        blocks = ledger.fresh(parents.size)
        ledger.use_units(blocks)
        labels[torch.from_numpy(parents)] = blocks
        block_of = blocks[torch.from_numpy(parent_of.reshape(-1))]
        _nest(ledger, units, block_of, repeated)
    main = _over_rows(labels, row_of, shape, item.reason)
    beside = _over_rows(_rigid_parts(sets, times), row_of, shape, "positions beside units")
    if main.rigid or not beside.axes:
        return (main,)
    ledger.relate(main, beside)
    return main, beside


def _blocks(
    ledger: Ledger, rows: Ints, shape: Sequence[int], kept: tuple[int, ...]
) -> tuple[Labels, ...]:
    """Units for rows that have no unit in common."""
    if len(rows) == 1:
        return ()
    blocks = ledger.fresh(len(rows))
    ledger.use_units(blocks)
    ledger.nest(rows.reshape(-1), np.repeat(blocks.numpy(), rows.shape[1]))
    return (Labels(blocks.view(tuple(shape)), kept, injective=True),)


def _nest(
    ledger: Ledger, units: Ints, blocks: Tensor, repeated: Sequence[npt.NDArray[np.bool_]]
) -> None:
    """Units move inside blocks; where blocks overlap, permutations still map blocks to blocks.

    How often a unit is in a block stays the same, too: `repeated` has a mask for each count.
    """
    if all_differ(units):
        ledger.nest(units, blocks.numpy())
        return
    for same in repeated:
        inside = Labels(torch.from_numpy(units[same]), (0,), injective=False)
        around = blocks[torch.from_numpy(same)]
        ledger.relate(inside, Labels(around, (0,), injective=False))


def _others(ndim: int, axes: Iterable[int]) -> list[int]:
    return [axis for axis in range(ndim) if axis not in set(axes)]


def _sets(rows: Ints) -> tuple[Ints, Ints, Ints]:
    """The rows that differ as multisets, in order of appearance.

    Returns:
        The rows, with one column for each run of equal ones; how long these runs are; and which
        of these rows each of the given ones is.
    """
    if rows.strides[0] < rows.strides[1]:  # what lies together in memory is compared first
        columns = run_starts(rows, 1)
        few = rows[:, columns]
        first = run_starts(few, 0)
        sets = few[first]
    else:
        first = run_starts(rows, 0)
        few = rows[first]
        columns = run_starts(few, 1)
        sets = few[:, columns]
    times = np.diff(columns, append=rows.shape[1])
    hashes = multiset_hashes(sets, times)
    _, found, set_of = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(found)
    row_of = np.repeat(np.argsort(order)[set_of.reshape(-1)], np.diff(first, append=len(rows)))
    return sets[found[order]], times, row_of


def _distinct_units(sets: Ints, times: Ints) -> tuple[Ints, Ints, Ints]:
    """The free labels of each row, each once, the rows that they are in, and how often they are.

    Args:
        sets: the rows.
        times: how often each column is there.
    """
    row = np.repeat(np.arange(sets.shape[0]), sets.shape[1])
    labels = sets.reshape(-1)
    free = labels >= 0
    if not free.any():
        return _EMPTY, _EMPTY, _EMPTY
    code = row_codes([row[free], labels[free]])
    first = np.zeros(int(code.max()) + 1, np.int64)
    first[code] = np.arange(code.size)
    count = np.zeros(first.size, np.int64)
    np.add.at(count, code, np.tile(times, len(sets))[free])
    return row[free][first], labels[free][first], count


def _rigid_parts(sets: Ints, times: Ints) -> Tensor:
    """A label for the rigid labels of each row, as a multiset."""
    hashes = multiset_hashes(sets, np.where(sets < 0, times, 0))
    return torch.from_numpy(rigid_labels(row_codes([hashes.view(np.int64)])))


def _over_rows(labels: Tensor, row_of: Ints, shape: Sequence[int], reason: str) -> Labels:
    """A field of the labels of rows, at the kept positions that the rows belong to."""
    return field_of(labels[torch.from_numpy(row_of)].view(tuple(shape)), reason)


def _reduced_to(item: Field, kept: Collection[int]) -> Field:
    """A field that varies along kept axes only; a view of elements may be expanded along others."""
    if isinstance(item, Labels):
        return item
    view = item.view
    for axis, size in enumerate(view.shape):
        if size > 1 and axis not in kept:
            view = view.narrow(axis, 0, 1)
    return item if view is item.view else Elements(item.state, view, item.axes)
