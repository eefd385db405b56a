"""Fields that meet at the positions of one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.elements import are_few, materialise
from fxrebasin.passes.fields.fields import Elements, Field, Labels, Value, pinned_value
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import all_differ, count_rows


def join(ledger: Ledger, fields: Iterable[Field]) -> tuple[Field, ...]:
    """Let fields meet at the positions of one tensor.

    Records everything that this forces, and returns a subset of the fields that still tells apart
    all positions that the given ones tell apart: preferably few fields along one axis each.
    """
    unique = list({id(item): item for item in fields}.values())
    labels = [item for item in unique if isinstance(item, Labels)]
    elements = [item for item in unique if isinstance(item, Elements)]
    kept: list[Labels] = []
    told_apart: set[int] = set()
    determined: set[int] = set()  # by a field that tells apart positions along several axes
    for item in sorted(labels, key=_preference):
        if _absorbed(ledger, item, kept, told_apart | determined):
            continue
        kept.append(item)
        if item.injective:
            determined |= set(item.axes)
        if (item.injective and len(item.axes) == 1) or (
            len(item.axes) == 1 and _tell_apart_together(item.axes[0], kept)
        ):
            told_apart.add(item.axes[0])
    result: list[Field] = [*kept]
    result += _join_elements(ledger, elements, kept, told_apart)
    return tuple(result)


def give_up(ledger: Ledger, value: Value, reason: str) -> Value:
    """Give up all freedom of a tensor; returns the value that says so."""
    pinned = pinned_value(value.shape, reason)
    join(ledger, [*pinned.fields, *value.fields])
    return pinned


def pinned_too(ledger: Ledger, value: Value, reason: str) -> Value:
    """A value after all its freedom was given up; what was rigid keeps its own reason."""
    pinned = pinned_value(value.shape, reason)
    return Value(value.shape, join(ledger, [*value.fields, *pinned.fields]))


def axes_told_apart(labels: Sequence[Labels]) -> set[int]:
    """Axes all of whose positions some of the given fields tell apart."""
    found = {axis for item in labels if item.injective for axis in item.axes}
    single = {item.axes[0] for item in labels if len(item.axes) == 1}
    found |= {axis for axis in single - found if _tell_apart_together(axis, labels)}
    return found


def _absorbed(ledger: Ledger, item: Labels, kept: list[Labels], told_apart: set[int]) -> bool:
    """Relate a field to those already kept; True when these make it superfluous."""
    touching = [other for other in kept if set(other.axes) & set(item.axes)]
    for other in touching:
        if other.axes == item.axes and _same(other, item):
            return True
    if touching and len(item.axes) == 1:
        for other in touching:
            _meet(ledger, other, item)
        if len(touching) > 1 and not any(other.injective for other in [item, *touching]):
            ledger.relate(item, *touching)
    elif touching:
        ledger.relate(item, *touching)
    return all(axis in told_apart for axis in item.axes)


def _same(first: Labels, second: Labels) -> bool:
    if first.values is second.values:
        return True
    if first.values.shape != second.values.shape:
        return False
    return first.rigid == second.rigid and torch.equal(first.values, second.values)


def _meet(ledger: Ledger, first: Labels, second: Labels) -> None:
    """Two fields along the same single axis."""
    if first.rigid and second.rigid:
        return
    if first.injective and second.injective:
        raw = first.values.reshape(-1).numpy(), second.values.reshape(-1).numpy()
        one, two = ledger.find(raw[0]), ledger.find(raw[1])
        if np.array_equal(one, two):
            return
        if first.rigid or second.rigid:
            ledger.pin(two if first.rigid else one, first.reason or second.reason)
            return
        free = (one >= 0) & (two >= 0)
        if free.all() and all_differ(one) and all_differ(two) and ledger.tie(one, two):
            ledger.ties.append(raw)
            return
    ledger.relate(first, second)


def _tell_apart_together(axis: int, fields: Sequence[Labels]) -> bool:
    """Whether fields along one axis alone tell all of its positions apart."""
    columns = [item.values.reshape(-1).numpy() for item in fields if item.axes == (axis,)]
    if len(columns) < 2:
        return False
    return count_rows(columns) == columns[0].size


def _join_elements(
    ledger: Ledger, elements: Sequence[Elements], kept: list[Labels], told_apart: set[int]
) -> list[Field]:
    result: list[Field] = []
    open_ones: list[Elements] = []
    for item in elements:
        for other in kept:
            _impose_part(ledger, item, other)
        if not all(axis in told_apart for axis in item.axes):
            open_ones.append(item)
    for index, item in enumerate(open_ones):
        for other_item in open_ones[:index]:
            _join_open(ledger, other_item, item)
    result += open_ones
    return result


def _impose_part(ledger: Ledger, item: Elements, labels: Labels) -> None:
    for part in coarsen(ledger, labels, item.axes):
        if isinstance(part, Labels):
            ledger.impose(item, part)


def _join_open(ledger: Ledger, first: Elements, second: Elements) -> None:
    """Two state tensors meet element by element, and no field tells the elements apart."""
    small, large = sorted((first, second), key=lambda item: len(item.axes))
    if are_few(small) or len(small.axes) < len(large.axes):
        _impose_part(ledger, large, materialise(ledger, small))
    else:
        ledger.element_ties.append((first, second))


def _preference(item: Labels) -> tuple[object, ...]:
    """Few axes first, then fields that tell all positions apart, then rigid ones."""
    return (len(item.axes), item.axes, not item.injective, not item.rigid)
