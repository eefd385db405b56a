"""Solve the constraints that propagation recorded for the model's permutation classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fxrebasin.layout import AxisGroup, PermutationClass
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import Bools, Ints, distinct, thinned
from fxrebasin.passes.group.classes import (
    Motion,
    Nesting,
)
from fxrebasin.passes.group.grids import (
    UnnamedGroup,
    axis_groups,
    group_labels,
    named_group,
)
from fxrebasin.passes.group.laying import lay_out
from fxrebasin.passes.group.reading import reduced_units
from fxrebasin.passes.group.relations import compact, maximal, with_blocks
from fxrebasin.passes.group.solving import solved
from fxrebasin.passes.group.state_fields import StateField, remember_parts, state_fields
from fxrebasin.passes.group.unread import Reading, taps_of, with_unread
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.symmetry import PinReason

_NO_PIN = -1


@dataclass(frozen=True, eq=False)
class Grouping:
    """The classes, and where their units sit in the state tensors.

    Attributes:
        classes: of units that may be permuted.
        layout: by state tensor, the axes that they move.
        pins: why each other axis stays as it is.
        fields: by state tensor, the labels on it.
        solved: what was recorded, with all that follows from it.
    """

    classes: tuple[PermutationClass, ...]
    layout: dict[str, tuple[AxisGroup, ...]]
    pins: dict[tuple[str, int], PinReason]
    fields: dict[str, list[StateField]]
    solved: Propagation


def group(propagation: Propagation) -> Grouping:
    """Find all permutations of units that satisfy the recorded constraints.

    Args:
        propagation: what was recorded; left as it is.
    """
    propagation = propagation.fork()
    ledger = propagation.ledger
    fields = state_fields(ledger, propagation.shapes)
    remember_parts(ledger, propagation.shapes, fields)
    met = [[labels.numpy() for labels in columns] for columns in maximal(ledger.relations)]
    known = ledger.size
    of_state = _relations_of_state(ledger, propagation.shapes, fields)
    lay = partial(lay_out, propagation.shapes, fields=fields)
    found = solved(ledger, met, of_state, lay)
    roots = ledger.compress()
    used = found.spread(reduced_units(ledger, roots, fields, known))
    read = _classes_of(found.motion, used)
    reading = Reading(_with_pins(ledger, used), frozenset(read))
    taps = taps_of(ledger, propagation.shapes)
    laid = with_unread(found.laid, propagation.shapes, fields, reading, taps)
    return _named(propagation, fields, found.classes, laid, read)


def _relations_of_state(
    ledger: Ledger, shapes: Mapping[str, Sequence[int]], fields: Mapping[str, list[StateField]]
) -> list[list[Ints]]:
    """Labels that meet on the elements of a state tensor."""
    found = []
    for state, items in fields.items():
        for axes in axis_groups(items, len(shapes[state])):
            labels = group_labels(items, axes, shapes[state])
            if len(labels) > 1 and any((item >= 0).any() for item in labels):
                found += compact(with_blocks(ledger, labels))
    return found


def _with_pins(ledger: Ledger, used: Bools) -> Bools:
    """For every unit as it was before ties, whether it is read, or has to stay."""
    roots = ledger.compress()
    found = used.copy()
    for pin in ledger.pins:
        found[roots[pin.units]] = True
    return found[roots]


def _classes_of(motion: Motion, units: Bools) -> set[int]:
    """The classes that move at least one of some units."""
    codes = motion.codes[units & (motion.codes >= 0)]
    kinds = distinct(motion.kind_of(codes)) if codes.size else codes
    return {column.index for kind in kinds for column in motion.kinds[kind]}


def _named(
    propagation: Propagation,
    fields: Mapping[str, list[StateField]],
    classes: Nesting,
    laid: Mapping[str, list[UnnamedGroup]],
    read: set[int],
) -> Grouping:
    """Name classes; those of which nothing is read are left where they are, and not counted."""
    axes = _axes_of_classes(propagation.shapes, laid)
    axes = {index: found for index, found in axes.items() if index in read}
    used = [index for index in range(len(classes.sizes)) if axes.get(index)]
    names = _names(used, axes, len(classes.sizes))
    order = sorted(used, key=lambda index: (len(classes.within[index]), index))
    found = tuple(
        PermutationClass(
            names[index],
            classes.sizes[index],
            tuple(names[outer] for outer in classes.within[index]),
            classes.count(index),
            tuple(axes[index]),
        )
        for index in order
    )
    layout = {}
    for state, items in laid.items():
        groups = [named_group(item, {index: names[index] for index in used}) for item in items]
        moving = tuple(item for item in groups if item is not None)
        if moving:
            layout[state] = moving
    free = {axis for items in axes.values() for axis in items}
    pins = _pins(propagation, fields, free)
    return Grouping(found, layout, pins, dict(fields), propagation)


def _axes_of_classes(
    shapes: Mapping[str, Sequence[int]], laid: Mapping[str, list[UnnamedGroup]]
) -> dict[int, list[tuple[str, int]]]:
    found: dict[int, dict[tuple[str, int], None]] = {}
    for state in shapes:
        for item in laid.get(state, []):
            for index, axis in _moves(item, shapes[state]):
                found.setdefault(index, {}).setdefault((state, axis))
    return {index: list(items) for index, items in found.items()}


def _moves(item: UnnamedGroup, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of a class and an axis of the tensor along which its units are at several positions."""
    sizes = [shape[axis] for axis in item.axes]
    for columns, positions in item.pieces:
        coordinates = np.unravel_index(positions, sizes)
        for index, column in enumerate(columns):
            if column is None:
                continue
            for axis, coordinate in zip(item.axes, coordinates, strict=True):
                if len(item.axes) == 1 or _varies(coordinate, index):
                    yield column.index, axis


def _varies(values: Ints, axis: int) -> bool:
    """Whether an array differs anywhere along an axis; usually the first two places show it."""
    first = values.take([0], axis=axis)
    return bool((values.take([1], axis=axis) != first).any() or (values != first).any())


def _names(
    used: Sequence[int], axes: Mapping[int, Sequence[tuple[str, int]]], total: int
) -> list[str]:
    """A class is named after its first parameter axis, numbered when several share that."""
    names = [f"#{index}" for index in range(total)]
    taken: dict[str, int] = {}
    for index in used:
        state, axis = axes[index][0]
        name = f"{state}[{axis}]"
        taken[name] = taken.get(name, 0) + 1
        names[index] = name if taken[name] == 1 else f"{name}.{taken[name]}"
    return names


def _pins(
    propagation: Propagation,
    fields: Mapping[str, list[StateField]],
    free: set[tuple[str, int]],
) -> dict[tuple[str, int], PinReason]:
    """Why each axis that no class moves stays where it is."""
    ledger = propagation.ledger
    first = np.full(ledger.size, _NO_PIN, dtype=np.int64)
    for number in reversed(range(len(ledger.pins))):
        first[ledger.find(ledger.pins[number].units)] = number
    found = {}
    for state, shape in propagation.shapes.items():
        for axis, size in enumerate(shape):
            if (state, axis) not in free:
                found[(state, axis)] = _reason(ledger, fields[state], axis, size, first)
    return found


def _with_origin(ledger: Ledger, reason: str, origin: int) -> PinReason:
    known = 0 <= origin < len(ledger.origins)
    return PinReason(reason, str(ledger.origins[origin]) if known else "")


def _reason(
    ledger: Ledger,
    fields: Sequence[StateField],
    axis: int,
    size: int,
    first: Ints,
) -> PinReason:
    """Why an axis stays; `first` has, by representative, the number of its first pin."""
    if size == 1:
        return PinReason("has a single element")
    if not fields:
        return PinReason("not read by the forward pass, or only as a constant")
    touching = [item for item in fields if axis in item.axes]
    for item in touching:
        labels = distinct(thinned([item.values])[0])
        numbers = first[ledger.find(labels[labels >= 0])]
        pinned = numbers[numbers != _NO_PIN]
        if pinned.size:
            pin = ledger.pins[pinned[0]]
            return _with_origin(ledger, pin.reason, pin.origin)
    for item in touching:
        if item.reason:
            return _with_origin(ledger, item.reason, item.origin)
    if touching:
        return PinReason("each position has a role of its own, or none")
    return PinReason("no operator tells its positions apart")
