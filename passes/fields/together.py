"""What the fields of a tensor say only together about positions that a reduction keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.elements import labelled
from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    field_of,
    identity,
    positions,
)
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints, determines, distinct, row_codes, thinned

TUPLES_AT_MOST = 1 << 23
"""Positions whose tuples of labels may become units; beyond that, they are pinned."""

_SAMPLE = 1 << 15


def together(ledger: Ledger, fields: Iterable[Field], kept: Collection[int]) -> list[Labels]:
    """What the fields of a tensor say about kept positions only together.

    At each kept position a reduction sees a set of tuples of labels. Where a field has the same
    labels at several positions, what it says of each kept position and what the others say of the
    removed ones does not tell which tuples these are: the same neighbours in another order. Then
    tuples become units, in blocks by kept position.
    """
    return [
        part
        for met in _sharing([item for item in fields if not set(item.axes) <= set(kept)], kept)
        if _lost_apart(ledger, met, kept)
        for part in _coarsen_tuples(ledger, met, kept)
    ]


def _lost_apart(ledger: Ledger, fields: Sequence[Field], kept: Collection[int]) -> bool:
    """Whether fields may say more of kept positions together than each by itself.

    They do not where the labels that each has at a kept position are at no other one: which labels
    of other fields they meet was recorded when the fields met.
    """
    if len(fields) < 2:
        return False
    apart = [set(f.axes) for f in fields if isinstance(f, Elements) or f.injective]
    return any(
        not any(axes.issuperset(item.axes) for axes in apart) and _recurs(ledger, item, kept)
        for item in fields
        if isinstance(item, Labels)
    )


def _recurs(ledger: Ledger, item: Labels, kept: Collection[int]) -> bool:
    """Whether a field has a label at several kept positions."""
    inside = tuple(axis for axis in item.axes if axis in kept)
    if item.injective or not inside:
        return False

    def look() -> bool:
        sizes = [s if axis in inside else 1 for axis, s in enumerate(item.values.shape)]
        places = torch.arange(math.prod(sizes)).view(sizes)
        return not _determines(ledger, item.values, places)

    return ledger.once(("recurs", identity(item.values), inside), look, [item.values])


def _coarsen_tuples(
    ledger: Ledger, fields: Sequence[Field], kept: Collection[int]
) -> Sequence[Labels]:
    shared = {axis for item in fields if isinstance(item, Labels) for axis in item.axes}
    parts = [part for item in fields for part in coarsen(ledger, item, shared)]
    columns = _undetermined(ledger, [label for part in parts for label in labelled(ledger, part)])
    rigid = [item for item in columns if item.rigid]
    free = [item for item in columns if not item.rigid]
    places = _places_told_apart(rigid, kept) if free and rigid else []
    found = [*_coarsened_together(ledger, [*rigid, *places], kept)]
    if places:
        join(ledger, [*places, *free])
    return [*found, *_coarsened_together(ledger, [*(places or rigid), *free], kept)]


def _coarsened_together(
    ledger: Ledger, columns: Sequence[Labels], kept: Collection[int]
) -> Sequence[Labels]:
    if not _lost_apart(ledger, columns, kept):
        return []
    sizes = np.broadcast_shapes(*(item.values.shape for item in columns))
    if math.prod(sizes) > TUPLES_AT_MOST:
        reason = "too many tuples of units"
        for item in columns:
            ledger.pin(distinct(item.values.numpy()), reason)
        axes = [axis for axis, size in enumerate(sizes) if size > 1 and axis in kept]
        return [positions(len(sizes), axis, sizes[axis], reason) for axis in axes]
    values = [item.values for item in columns]
    key = ("tuples", *map(identity, values))
    found = ledger.once(key, lambda: _tuples(ledger, columns, sizes), values)
    return [part for part in coarsen(ledger, found, kept) if isinstance(part, Labels)]


def _tuples(ledger: Ledger, columns: Sequence[Labels], sizes: Sequence[int]) -> Labels:
    """A field of the tuples of labels at the positions of a tensor."""
    code = torch.from_numpy(_joint_codes(columns, sizes))
    rigid = all(item.rigid for item in columns)
    units = rigid_labels(code) if rigid else ledger.fresh(int(code.max()) + 1)[code]
    found = field_of(units.view(tuple(sizes)), "tuples of positions")
    ledger.relate(found, *columns)
    return found


def _sharing(fields: Sequence[Field], kept: Collection[int]) -> list[list[Field]]:
    """Fields that vary along a removed axis together, directly or through others."""
    groups: list[tuple[set[int], list[Field]]] = []
    for item in fields:
        axes = set(item.axes) - set(kept)
        touching = [group for group in groups if group[0] & axes]
        groups = [group for group in groups if not group[0] & axes]
        members = [other for _, found in touching for other in found]
        groups.append((axes.union(*(found for found, _ in touching)), [*members, item]))
    return [found for _, found in groups]


def _undetermined(ledger: Ledger, fields: Sequence[Labels]) -> list[Labels]:
    """The fields without those that another one determines, along the same axes or more."""
    found: list[Labels] = []
    for item in sorted(fields, key=lambda item: (-len(item.axes), not item.injective)):
        above = [other for other in found if set(item.axes) <= set(other.axes)]
        if not any(
            other.injective or _determines(ledger, other.values, item.values) for other in above
        ):
            found.append(item)
    return found


def _determines(ledger: Ledger, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether positions with one number in the first have one number in the second.

    The second does not vary where it has size 1. Where the answer is no, some of the positions
    usually show it. Otherwise what is alike in the first along such axes, as most tokens are,
    counts once.
    """
    step = max(1, first.numel() // _SAMPLE) | 1
    if step > 1:
        places = np.unravel_index(np.arange(0, first.numel(), step), first.shape)
        some = tuple(torch.from_numpy(index) for index in places)
        if not determines(first[some].numpy(), second.expand_as(first)[some].numpy()):
            return False
        still = tuple(axis for axis, size in enumerate(second.shape) if size < first.shape[axis])
        key = ("thinned", identity(first), still)
        first = ledger.once(key, lambda: _thinned(first, still), [first])
    return determines(first.reshape(-1).numpy(), second.expand_as(first).reshape(-1).numpy())


def _thinned(values: torch.Tensor, axes: Collection[int]) -> torch.Tensor:
    return torch.from_numpy(thinned([values.numpy()], axes)[0])


def _places_told_apart(fields: Sequence[Labels], kept: Collection[int]) -> list[Labels]:
    """The removed positions, if rigid fields tell all of them apart at some kept position.

    Whatever else varies along the removed axes then stays in its place, at all kept positions.
    """
    sizes = np.broadcast_shapes(*(item.values.shape for item in fields))
    order = sorted(range(len(sizes)), key=lambda axis: axis not in kept)
    removed = [axis for axis, size in enumerate(sizes) if size > 1 and axis not in kept]
    width = math.prod(sizes[axis] for axis in removed)
    rows = _joint_codes(fields, sizes).reshape(sizes).transpose(order).reshape(-1, width)
    ordered = np.sort(rows, axis=1)
    if not (ordered[:, 1:] != ordered[:, :-1]).all(axis=1).any():
        return []
    return [positions(len(sizes), axis, sizes[axis], fields[0].reason) for axis in removed]


def _joint_codes(fields: Sequence[Labels], sizes: Sequence[int]) -> Ints:
    """A number for the tuple of labels at each position."""
    return row_codes([item.values.expand(tuple(sizes)).reshape(-1).numpy() for item in fields])
