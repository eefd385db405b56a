"""Units for the elements of state tensors: made where an operator has to tell elements apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Elements, Field, Labels, elements_of
from fxrebasin.passes.fields.labels import part_label
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Ints

MATERIALISE_AT_MOST = 1 << 16
"""Elements of a state tensor that may become units of their own."""

MERGED_AT_MOST = 1 << 20
"""The same, of elements along several axes of a state tensor that an operator merges into one."""


def elements_field(state: str, shape: Sequence[int]) -> tuple[Field, ...]:
    """The field of a state tensor that nothing constrains yet."""
    found = elements_of(state, _addresses(tuple(shape)))
    return () if found is None else (found,)


@lru_cache(maxsize=4096)
def _addresses(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose strides address the elements of a contiguous one."""
    return torch.empty(shape, dtype=torch.int8, device="meta")


def addresses_of(view: Tensor) -> Ints:
    """Where in memory the elements of a tensor are, in order, counted in elements."""
    found = np.array(view.storage_offset(), dtype=np.int64)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        found = np.add.outer(found, np.arange(size) * stride)
    return found.reshape(-1)


def materialise(ledger: Ledger, elements: Elements) -> Labels:
    """Units for every element of a (small) state tensor's view."""
    return units_along(ledger, elements, elements.axes)


def labelled(ledger: Ledger, item: Field) -> list[Labels]:
    """A field as labels."""
    return [item] if isinstance(item, Labels) else separate(ledger, item)


def separate(
    ledger: Ledger, elements: Elements, together: Collection[Collection[int]] = ()
) -> list[Labels]:
    """Labels for the elements of a state tensor's view.

    In a large tensor, axes are labelled together only where an operator merges them. That gives up
    permutations of one axis that depend on another, which the notes say unless a single axis is
    left besides the merged ones: what meets that axis is not concerned with the others.
    """
    if are_few(elements):
        return [materialise(ledger, elements)]
    merged = [tuple(a for a in elements.axes if a in axes) for axes in together]
    groups = [
        axes for axes in merged if len(axes) > 1 and count_of(elements, axes) <= MERGED_AT_MOST
    ]
    groups += [(a,) for a in elements.axes if not any(a in axes for axes in groups)]
    if len(groups) > 2 or len(groups) == len(elements.axes):
        ledger.notes.setdefault(
            f"{elements.state} has more than {MATERIALISE_AT_MOST:,} elements, and "
            f"{ledger.origins[-1]} mixes its axes: permutations of one that differ along another "
            "are not looked for"
        )
    return [units_along(ledger, elements, axes) for axes in groups]


def by_axis(ledger: Ledger, elements: Elements) -> list[Labels]:
    """One field per axis, of however many elements."""
    return [units_along(ledger, elements, (axis,)) for axis in elements.axes]


def units_along(ledger: Ledger, item: Elements, kept: tuple[int, ...]) -> Labels:
    """A unit for each position along some axes, which stands for all elements there.

    Views that differ only in the order of their axes share the units.
    """
    view = item.view
    by_stride = sorted(kept, key=lambda axis: -view.stride()[axis])
    removed = tuple(
        sorted((view.stride(axis), view.shape[axis]) for axis in item.axes if axis not in kept)
    )
    key = (
        "units",
        item.state,
        view.storage_offset(),
        tuple((view.stride(axis), view.shape[axis]) for axis in by_stride),
        removed,
    )
    sizes = [view.shape[axis] for axis in by_stride]
    units = ledger.once(key, lambda: ledger.fresh(math.prod(sizes)).view(sizes))
    shape = [1] * view.ndim
    for axis in kept:
        shape[axis] = view.shape[axis]
    order = [by_stride.index(axis) for axis in kept]
    placed = ledger.once(
        (key, tuple(shape), tuple(order)),
        lambda: Labels(units.permute(order).reshape(shape), kept, injective=True),
    )
    ledger.impose(item, placed)
    return placed


def mark_part(ledger: Ledger, item: Elements) -> None:
    """A part of a state tensor that is reduced to a number differs from the rest of it."""
    if count_of(item) < item.view.untyped_storage().nbytes():
        label = torch.full((1,) * item.view.ndim, part_label(ledger.origin))
        ledger.impose(item, Labels(label, (), True, True, "a part of the tensor is reduced"))


def are_few(elements: Elements) -> bool:
    """Whether each element may become a unit of its own."""
    return count_of(elements) <= MATERIALISE_AT_MOST


def count_of(item: Elements, axes: Sequence[int] | None = None) -> int:
    """How many elements a view of a state tensor holds, each once however often it is broadcast.

    Args:
        item: the elements.
        axes: to count along, by default all.
    """
    return math.prod(item.view.shape[axis] for axis in (item.axes if axes is None else axes))
