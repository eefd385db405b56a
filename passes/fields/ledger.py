"""What propagation records: units, and everything that constrains their permutations.

Five kinds of entry describe the constraints; `passes.group` solves for the permutations that
satisfy all of them:

- *tie*: two units always move together (union-find);
- *pin*: a unit never moves;
- *edge*: a child unit moves inside its parent (a head and the dimensions in it);
- *relation*: a set of label tuples that occur together at the positions of one tensor, and that a
  permutation has to map onto itself;
- *imposition*: labels laid onto the elements of a state tensor by an operator that reads it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxrebasin.passes.fields.constraints import Edge, Imposition, Pin
from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    Value,
    elements_of,
    field_of,
    labels_of,
    positions,
    reshape_labels,
)
from fxrebasin.passes.fields.labels import part_label, rigid_labels
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.fields.rows import (
    Ints,
    all_differ,
    count_rows,
    distinct,
    mix,
    multiset_hashes,
    row_codes,
)
from fxrebasin.passes.fields.units import Units

MATERIALISE_AT_MOST = 1 << 16
"""Elements of a state tensor that may become units of their own."""

MERGED_AT_MOST = 1 << 20
"""The same, of elements along several axes of a state tensor that an operator merges into one."""

TUPLES_AT_MOST = 1 << 20
"""Positions whose tuples of labels may become units; beyond that, they are pinned."""


@dataclass
class Ledger(Units):
    """All units and constraints met so far; `origin` is the operator being propagated."""

    origins: list[Origin] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    relations: dict[tuple[object, ...], tuple[Tensor, ...]] = field(default_factory=dict)
    members: list[Tensor] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    used_parts: list[Elements] = field(default_factory=list)
    impositions: dict[str, list[Imposition]] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    element_ties: list[tuple[Elements, Elements]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    _coarsened: dict[object, Labels] = field(default_factory=dict)
    _seen: dict[object, Any] = field(default_factory=dict)

    def fork(self) -> Ledger:
        """A copy that can be added to; labels, which never change, are shared."""
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set | np.ndarray):
                setattr(made, name, value.copy())
        made.impositions = {state: list(items) for state, items in self.impositions.items()}
        return made

    @property
    def origin(self) -> int:
        """Index of the operator being propagated."""
        return len(self.origins) - 1

    # Constraints ------------------------------------------------------------------------------

    def pin(self, units: Ints, reason: str) -> None:
        """Record that units never move; rigid labels are passed over."""
        free = units[units >= 0]
        if free.size:
            self.pins.append(Pin(distinct(free), reason, self.origin))

    def use(self, labels: Labels) -> None:
        """Record that something is computed from the values of these units."""
        if not labels.rigid:
            self.used.append(labels.values)

    def relate(self, *columns: Labels) -> None:
        """Record that these fields label the positions of one tensor together."""
        columns = _connected_to_free(columns)
        if len(columns) < 2:
            return
        tensors = tuple(column.values for column in columns)
        self.relations.setdefault(tuple(_identity(values) for values in tensors), tensors)

    def remember(self, labels: Labels | None) -> None:
        """Record a selection of units: those in it differ from those that are not."""
        if labels is not None and not labels.rigid:
            self.members.append(labels.values)

    def remember_units(self, units: Ints) -> None:
        """Record a selection of units by their labels; rigid ones are passed over."""
        free = units[units >= 0]
        if free.size:
            self.members.append(torch.from_numpy(distinct(free)))

    def impose(self, elements: Elements, labels: Labels) -> None:
        """Lay labels onto the elements of a state tensor."""
        key = (
            elements.state,
            elements.view.storage_offset(),
            tuple(
                (elements.view.shape[axis], elements.view.stride(axis)) for axis in elements.axes
            ),
            _identity(labels.values),
        )
        if key in self._seen:
            return
        self._seen[key] = labels.values
        self.impositions.setdefault(elements.state, []).append(
            Imposition(elements.view, labels.values, self.origin, labels.reason)
        )

    def places(self) -> set[object]:
        """The parts of state tensors that were read: name, offset, sizes and strides."""
        return {
            (state, view.storage_offset(), view.shape, view.stride())
            for state, items in self.impositions.items()
            for view in (item.view for item in items)
        }

    # Fields -----------------------------------------------------------------------------------

    def materialise(self, elements: Elements) -> Labels:
        """Units for every element of a (small) state tensor's view."""
        return self._coarsen_elements(elements, elements.axes)

    def labels(self, item: Field) -> list[Labels]:
        """A field as labels."""
        return [item] if isinstance(item, Labels) else self.separate(item)

    def separate(
        self, elements: Elements, together: Collection[Collection[int]] = ()
    ) -> list[Labels]:
        """Labels for the elements of a state tensor's view.

        In a large tensor, axes are labelled together only where an operator merges them. That gives
        up permutations of one axis that depend on another, which the notes say unless a single axis
        is left besides the merged ones: what meets that axis is not concerned with the others.
        """
        if _count(elements) <= MATERIALISE_AT_MOST:
            return [self.materialise(elements)]
        merged = [tuple(a for a in elements.axes if a in axes) for axes in together]
        groups = [
            axes for axes in merged if len(axes) > 1 and _count(elements, axes) <= MERGED_AT_MOST
        ]
        groups += [(a,) for a in elements.axes if not any(a in axes for axes in groups)]
        if len(groups) > 2 or len(groups) == len(elements.axes):
            self.notes.setdefault(
                f"{elements.state} has more than {MATERIALISE_AT_MOST:,} elements, and "
                f"{self.origins[-1]} mixes its axes: permutations of one that differ along another "
                "are not looked for"
            )
        return [self._coarsen_elements(elements, axes) for axes in groups]

    def by_axis(self, elements: Elements) -> list[Labels]:
        """One field per axis, of however many elements."""
        return [self._coarsen_elements(elements, (axis,)) for axis in elements.axes]

    def coarsen(self, item: Field, kept: Collection[int]) -> tuple[Field, ...]:
        """What is left of a field when only the kept axes are looked at (the others get size 1).

        Where the field varies along kept and removed axes, the units at each kept position become
        the children of a new unit, and rigid labels beside them a field of their own. Nothing is
        left of a field that does not tell kept positions apart.
        """
        inside = tuple(axis for axis in item.axes if axis in kept)
        if len(inside) == len(item.axes):
            return (_reduced_to(item, kept),) if inside else ()
        if isinstance(item, Elements):
            if not inside:
                self._mark_part(item)
                return ()
            return (self._coarsen_elements(item, inside),)
        if not inside and (item.injective or item.rigid):
            return ()
        key = ("coarsen", _identity(item.values), inside)
        if key not in self._seen:
            # The labels stay alive with the key, since their address is part of it.
            self._seen[key] = (item.values, self._coarsen_labels(item, inside))
        found: tuple[Field, ...] = self._seen[key][1]
        return found

    def reshaped(
        self, item: Labels, before: tuple[int, ...], after: tuple[int, ...]
    ) -> Labels | None:
        """A field in another shape; remembered, since layers split positions in the same ways."""
        flags = (item.injective, item.rigid, item.reason, item.routing)
        key = ("reshape", _identity(item.values), flags, before, after)
        if key not in self._seen:
            self._seen[key] = (item.values, reshape_labels(item, before, after))
        found: Labels | None = self._seen[key][1]
        return found

    def _mark_part(self, item: Elements) -> None:
        """A part of a state tensor that is reduced to a number differs from the rest of it."""
        if _count(item) < item.view.untyped_storage().nbytes():
            label = torch.full((1,) * item.view.ndim, part_label(self.origin))
            self.impose(item, Labels(label, (), True, True, "a part of the tensor is reduced"))

    def _coarsen_elements(self, item: Elements, kept: tuple[int, ...]) -> Labels:
        view = item.view
        by_stride = sorted(kept, key=lambda axis: -view.stride()[axis])
        removed = tuple(
            sorted((view.stride(axis), view.shape[axis]) for axis in item.axes if axis not in kept)
        )
        key = (
            item.state,
            view.storage_offset(),
            tuple((view.stride(axis), view.shape[axis]) for axis in by_stride),
            removed,
        )
        labels = self._coarsened.get(key)
        sizes = [view.shape[axis] for axis in by_stride]
        if labels is None:
            values = self.fresh(int(np.prod(sizes))).view(sizes)
            labels = Labels(values, tuple(range(len(sizes))), injective=True)
            self._coarsened[key] = labels
        shape = [1] * view.ndim
        for axis in kept:
            shape[axis] = view.shape[axis]
        order = [by_stride.index(axis) for axis in kept]
        placed_key = (key, tuple(shape), tuple(order))
        placed = self._coarsened.get(placed_key)
        if placed is None:
            placed = Labels(labels.values.permute(order).reshape(shape), kept, injective=True)
            self._coarsened[placed_key] = placed
        self.impose(item, placed)
        return placed

    def _coarsen_labels(self, item: Labels, kept: tuple[int, ...]) -> tuple[Labels, ...]:
        values = item.values
        removed = [axis for axis in item.axes if axis not in kept]
        shape = [1 if axis in removed else size for axis, size in enumerate(values.shape)]
        rows = values.permute([*kept, *removed, *self._others(values.ndim, item.axes)])
        rows_np = rows.reshape(math.prod(values.shape[axis] for axis in kept), -1).numpy()
        if item.injective and int(rows_np.min()) >= 0:
            return self._blocks(rows_np, shape, kept)
        sets, row_of = (rows_np, np.arange(len(rows_np))) if item.injective else _sets(rows_np)
        row, units, count = _distinct_units(sets)
        for times in distinct(count) if not item.injective else ():
            if (count != times).any():  # added twice is not the same as added once
                self.remember_units(units[count == times])
        if len(sets) == 1:
            return ()
        labels = positions(1, 0, len(sets), item.reason).values.clone()
        if units.size:
            parents, parent_of = np.unique(row, return_inverse=True)
            blocks = self.fresh(parents.size)
            self.used.append(blocks)
            labels[torch.from_numpy(parents)] = blocks
            self._nest(units, blocks[torch.from_numpy(parent_of.reshape(-1))])
        main = _over_rows(labels, row_of, shape, item.reason)
        beside = _over_rows(_rigid_parts(sets), row_of, shape, "positions beside units")
        if main.rigid or not beside.axes:
            return (main,)
        self.relate(main, beside)
        return main, beside

    def _blocks(
        self, rows: Ints, shape: Sequence[int], kept: tuple[int, ...]
    ) -> tuple[Labels, ...]:
        """Units for rows of units that are all in no other row."""
        if len(rows) == 1:
            return ()
        blocks = self.fresh(len(rows))
        self.used.append(blocks)
        self.edges.append(Edge(rows.reshape(-1), np.repeat(blocks.numpy(), rows.shape[1])))
        return (Labels(blocks.view(tuple(shape)), kept, injective=True),)

    def _nest(self, units: Ints, blocks: Tensor) -> None:
        """Units move inside blocks; where blocks overlap, they still have to stay what they are."""
        if all_differ(units):
            self.edges.append(Edge(units, blocks.numpy()))
        else:
            inside = Labels(torch.from_numpy(units), (0,), injective=False)
            self.relate(inside, Labels(blocks, (0,), injective=False))

    @staticmethod
    def _others(ndim: int, axes: Iterable[int]) -> list[int]:
        return [axis for axis in range(ndim) if axis not in set(axes)]

    def reduce(self, value: Value, kept: Collection[int]) -> list[Field]:
        """The fields of a tensor whose other axes are summed, averaged or otherwise reduced."""
        for item in value.fields:
            if isinstance(item, Elements):
                if not set(item.axes) & set(kept):
                    self.used_parts.append(item)
            elif not set(item.axes) <= set(kept):
                self.use(item)
        found = [part for item in value.fields for part in self.coarsen(item, kept)]
        found += self.together(value.fields, kept)
        crossed = any(0 < len(set(item.axes) & set(kept)) < len(item.axes) for item in value.fields)
        # What several fields say of one kept position meets there, if only now.
        return list(self.join(found)) if crossed and len(found) > 1 else found

    def together(self, fields: Iterable[Field], kept: Collection[int]) -> list[Labels]:
        """What the fields of a tensor say about kept positions only together.

        At each kept position a reduction sees a set of tuples of labels. Where a field has the
        same labels at several positions, what it says of each kept position and what the others
        say of the removed ones does not tell which tuples these are: the same neighbours in
        another order. Then tuples become units, in blocks by kept position.
        """
        return [
            part
            for met in _sharing([item for item in fields if not set(item.axes) <= set(kept)], kept)
            if self._lost_apart(met, kept)
            for part in self._coarsen_tuples(met, kept)
        ]

    def _lost_apart(self, fields: Sequence[Field], kept: Collection[int]) -> bool:
        """Whether fields may say more of kept positions together than each by itself.

        They do not where the labels that each has at a kept position are at no other one: which
        labels of other fields they meet was recorded when the fields met.
        """
        if len(fields) < 2:
            return False
        apart = [set(f.axes) for f in fields if isinstance(f, Elements) or f.injective]
        return any(
            not any(axes.issuperset(item.axes) for axes in apart) and self._recurs(item, kept)
            for item in fields
            if isinstance(item, Labels)
        )

    def _recurs(self, item: Labels, kept: Collection[int]) -> bool:
        """Whether a field has a label at several kept positions."""
        inside = tuple(axis for axis in item.axes if axis in kept)
        if item.injective or not inside:
            return False
        key = ("recurs", _identity(item.values), inside)
        if key not in self._seen:
            order = [*inside, *(axis for axis in range(item.values.ndim) if axis not in inside)]
            count = math.prod(item.values.shape[axis] for axis in inside)
            labels = item.values.permute(order).reshape(count, -1).numpy()
            place = np.repeat(np.arange(count), labels.shape[1])
            found = count_rows([place, labels.reshape(-1)]) > distinct(labels).size
            self._seen[key] = (item.values, found)
        return bool(self._seen[key][1])

    def _coarsen_tuples(self, fields: Sequence[Field], kept: Collection[int]) -> Sequence[Labels]:
        shared = {axis for item in fields if isinstance(item, Labels) for axis in item.axes}
        parts = [part for item in fields for part in self.coarsen(item, shared)]
        columns = _telling([label for part in parts for label in self.labels(part)])
        rigid = [item for item in columns if item.rigid]
        free = [item for item in columns if not item.rigid]
        places = _places_told_apart(rigid, kept) if free and rigid else []
        found = [*self._coarsened_together([*rigid, *places], kept)]
        if places:
            self.join([*places, *free])
        return [*found, *self._coarsened_together([*(places or rigid), *free], kept)]

    def _coarsened_together(
        self, columns: Sequence[Labels], kept: Collection[int]
    ) -> Sequence[Labels]:
        if not self._lost_apart(columns, kept):
            return []
        sizes = np.broadcast_shapes(*(item.values.shape for item in columns))
        if math.prod(sizes) > TUPLES_AT_MOST:
            reason = "too many tuples of units"
            for item in columns:
                self.pin(distinct(item.values.numpy()), reason)
            axes = [axis for axis, size in enumerate(sizes) if size > 1 and axis in kept]
            return [positions(len(sizes), axis, sizes[axis], reason) for axis in axes]
        key = ("tuples", *(_identity(item.values) for item in columns))
        if key not in self._seen:
            self._seen[key] = ([item.values for item in columns], self._tuples(columns, sizes))
        found: Labels = self._seen[key][1]
        return [part for part in self.coarsen(found, kept) if isinstance(part, Labels)]

    def _tuples(self, columns: Sequence[Labels], sizes: Sequence[int]) -> Labels:
        """A field of the tuples of labels at the positions of a tensor."""
        code = torch.from_numpy(_joint_codes(columns, sizes))
        rigid = all(item.rigid for item in columns)
        units = rigid_labels(code) if rigid else self.fresh(int(code.max()) + 1)[code]
        found = field_of(units.view(tuple(sizes)), "tuples of positions")
        self.relate(found, *columns)
        return found

    # Joining ----------------------------------------------------------------------------------

    def join(self, fields: Iterable[Field]) -> tuple[Field, ...]:
        """Let fields meet at the positions of one tensor.

        Records everything that this forces, and returns a subset of the fields that still tells
        apart all positions that the given ones tell apart: preferably few fields along one axis
        each.
        """
        unique = list({id(item): item for item in fields}.values())
        labels = [item for item in unique if isinstance(item, Labels)]
        elements = [item for item in unique if isinstance(item, Elements)]
        self._part_routings(unique)
        kept: list[Labels] = []
        identified: set[int] = set()
        determined: set[int] = set()  # by a field that tells apart positions along several axes
        for item in sorted(labels, key=_preference):
            if self._absorbed(item, kept, identified | determined):
                continue
            kept.append(item)
            if item.injective:
                determined |= set(item.axes)
            if (item.injective and len(item.axes) == 1) or (
                len(item.axes) == 1 and self._identify_together(item.axes[0], kept)
            ):
                identified.add(item.axes[0])
        result: list[Field] = [*kept]
        result += self._join_elements(elements, kept, identified)
        return tuple(result)

    def _part_routings(self, fields: Sequence[Field]) -> None:
        """Give up rows of chosen experts that meet others which differ from row to row.

        Which row belongs to which expert depends on data: any expert may meet any other row.
        """
        for item in fields:
            if not isinstance(item, Labels) or not _is_routed(item):
                continue
            for other in fields:
                alike = isinstance(other, Labels) and (other.rigid or other.routing == item.routing)
                if not alike and len(set(item.axes) & set(other.axes)) > 1:
                    self.pin(distinct(item.values.numpy()), "meets rows of another choice")

    def hold_routed(self, item: Labels) -> None:
        """Give up rows of chosen experts that change places: they meet rows of any expert then."""
        if _is_routed(item):
            self.pin(distinct(item.values.numpy()), "rows of chosen experts change places")

    def identified(self, labels: Sequence[Labels]) -> set[int]:
        """Axes all of whose positions some of the given fields tell apart."""
        found = {axis for item in labels if item.injective for axis in item.axes}
        single = {item.axes[0] for item in labels if len(item.axes) == 1}
        found |= {axis for axis in single - found if self._identify_together(axis, labels)}
        return found

    def _absorbed(self, item: Labels, kept: list[Labels], identified: set[int]) -> bool:
        """Relate a field to those already kept; True when these make it superfluous."""
        touching = [other for other in kept if set(other.axes) & set(item.axes)]
        for other in touching:
            if other.axes == item.axes and self._same(other, item):
                return True
        if touching and len(item.axes) == 1:
            for other in touching:
                self._meet(other, item)
            if len(touching) > 1 and not any(other.injective for other in [item, *touching]):
                self.relate(item, *touching)
        elif touching:
            self.relate(item, *touching)
        return all(axis in identified for axis in item.axes)

    def _same(self, first: Labels, second: Labels) -> bool:
        if first.values is second.values:
            return True
        if first.values.shape != second.values.shape:
            return False
        return first.rigid == second.rigid and torch.equal(first.values, second.values)

    def _meet(self, first: Labels, second: Labels) -> None:
        """Two fields along the same single axis."""
        if first.rigid and second.rigid:
            return
        if first.injective and second.injective:
            raw = first.values.reshape(-1).numpy(), second.values.reshape(-1).numpy()
            one, two = self.find(raw[0]), self.find(raw[1])
            if np.array_equal(one, two):
                return
            if first.rigid or second.rigid:
                self.pin(two if first.rigid else one, first.reason or second.reason)
                return
            free = (one >= 0) & (two >= 0)
            if free.all() and all_differ(one) and all_differ(two) and self.tie(one, two):
                self.ties.append(raw)
                return
        self.relate(first, second)

    def _identify_together(self, axis: int, kept: Sequence[Labels]) -> bool:
        columns = [item.values.reshape(-1).numpy() for item in kept if item.axes == (axis,)]
        if len(columns) < 2:
            return False
        return count_rows(columns) == columns[0].size

    def _join_elements(
        self, elements: Sequence[Elements], kept: list[Labels], identified: set[int]
    ) -> list[Field]:
        result: list[Field] = []
        open_ones: list[Elements] = []
        for item in elements:
            for other in kept:
                self._impose_part(item, other)
            if not all(axis in identified for axis in item.axes):
                open_ones.append(item)
        for index, item in enumerate(open_ones):
            for other_item in open_ones[:index]:
                self._join_open(other_item, item)
        result += open_ones
        return result

    def _impose_part(self, item: Elements, labels: Labels) -> None:
        for part in self.coarsen(labels, item.axes):
            if isinstance(part, Labels):
                self.impose(item, part)

    def _join_open(self, first: Elements, second: Elements) -> None:
        """Two state tensors meet element by element, and no field tells the elements apart."""
        small, large = sorted((first, second), key=lambda item: len(item.axes))
        if _count(small) <= MATERIALISE_AT_MOST or len(small.axes) < len(large.axes):
            self._impose_part(large, self.materialise(small))
        else:
            self.element_ties.append((first, second))


def _is_routed(item: Labels) -> bool:
    return not item.rigid and item.routing is not None


def _sets(rows: Ints) -> tuple[Ints, Ints]:
    """Rows that are different as multisets, as they come, and the index of that of each row."""
    _, first, row_of = np.unique(multiset_hashes(rows), return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[first[order]], np.argsort(order)[row_of.reshape(-1)]


def _distinct_units(sets: Ints) -> tuple[Ints, Ints, Ints]:
    """The free labels of each row, each once, the rows that they are in, and how often they are."""
    row = np.repeat(np.arange(sets.shape[0]), sets.shape[1])
    labels = sets.reshape(-1)
    free = labels >= 0
    if not free.any():
        return _EMPTY, _EMPTY, _EMPTY
    code = row_codes([row[free], labels[free]])
    first = np.zeros(int(code.max()) + 1, np.int64)
    first[code] = np.arange(code.size)
    return row[free][first], labels[free][first], np.bincount(code)


def _rigid_parts(sets: Ints) -> Tensor:
    """A label for the rigid labels of each row, as a multiset."""
    hashes = np.where(sets < 0, mix(sets, 9), np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return torch.from_numpy(rigid_labels(row_codes([hashes.view(np.int64)])))


def _over_rows(labels: Tensor, row_of: Ints, shape: Sequence[int], reason: str) -> Labels:
    """A field of the labels of rows, at the kept positions that the rows belong to."""
    return field_of(labels[torch.from_numpy(row_of)].view(tuple(shape)), reason)


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


def _telling(fields: Sequence[Labels]) -> list[Labels]:
    """The fields without those that another one determines, along the same axes or more."""
    found: list[Labels] = []
    for item in sorted(fields, key=lambda item: (-len(item.axes), not item.injective)):
        above = [other for other in found if set(item.axes) <= set(other.axes)]
        if not any(other.injective or _determines(other, item) for other in above):
            found.append(item)
    return found


def _determines(first: Labels, second: Labels) -> bool:
    """Whether positions with one label in the first have one label in the second."""
    sizes = first.values.shape
    one = first.values.reshape(-1).numpy()
    two = second.values.expand(sizes).reshape(-1).numpy()
    return count_rows([one, two]) == count_rows([one])


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


def _connected_to_free(columns: Sequence[Labels]) -> tuple[Labels, ...]:
    """Columns that share axes with a free one, directly or through others; the rest say nothing."""
    axes = {axis for column in columns if not column.rigid for axis in column.axes}
    while True:
        found = tuple(column for column in columns if axes & set(column.axes))
        grown = axes.union(*(column.axes for column in found))
        if grown == axes:
            return found
        axes = grown


def _reduced_to(item: Field, kept: Collection[int]) -> Field:
    """A field that varies along kept axes only; elements are expanded along others at times."""
    if isinstance(item, Labels):
        return item
    view = item.view
    for axis, size in enumerate(view.shape):
        if size > 1 and axis not in kept:
            view = view.narrow(axis, 0, 1)
    return item if view is item.view else Elements(item.state, view, item.axes)


def _count(item: Elements, axes: Sequence[int] | None = None) -> int:
    """How many elements a view of a state tensor holds, each once however often it is broadcast.

    Args:
        item: the elements.
        axes: to count along, by default all.
    """
    return math.prod(item.view.shape[axis] for axis in (item.axes if axes is None else axes))


def _preference(item: Labels) -> tuple[object, ...]:
    """Few axes first, then fields that tell all positions apart, then rigid ones."""
    return (len(item.axes), item.axes, not item.injective, not item.rigid)


def _identity(values: Tensor) -> tuple[object, ...]:
    """Equal for two views of the same labels; valid while one of them is alive."""
    return (
        values.data_ptr(),
        values.ndim,
        tuple(
            (axis, size, stride)
            for axis, (size, stride) in enumerate(zip(values.shape, values.stride(), strict=True))
            if size > 1
        ),
    )


_EMPTY: Ints = np.zeros(0, np.int64)


def elements_field(state: str, shape: Sequence[int]) -> tuple[Field, ...]:
    """The field of a state tensor that nothing constrains yet."""
    found = elements_of(state, _addresses(tuple(shape)))
    return () if found is None else (found,)


@lru_cache(maxsize=4096)
def _addresses(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose strides address the elements of a contiguous one."""
    return torch.empty(shape, dtype=torch.int8, device="meta")


def free_labels(values: Tensor, like: Labels | None = None) -> Labels | None:
    """Labels from any movement of a field, with `injective` decided by looking."""
    flat = values.reshape(-1).numpy()
    return labels_of(values, like, injective=all_differ(flat))
