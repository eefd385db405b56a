"""What negative labels mean. A label that is not negative is the number of a unit."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from fxrebasin.passes.fields.rows import Ints

_Numbers = TypeVar("_Numbers", Ints, Tensor, int)

NONE = -1
"""A position about which a field says nothing."""

RIGID = -1
"""In place of the number of a class, a colour or coordinates: that of what cannot move."""

_FIRST = -2

_FROM_UNITS = 1 << 40


def rigid_labels(numbers: _Numbers) -> _Numbers:
    """Labels for what cannot move, one for each number from 0 up.

    They name positions along an axis, parts of a tensor, or tuples of other rigid labels. What
    they name is up to the field: the same label means nothing in another one.
    """
    return _FIRST - numbers


OUTSIDE, INSIDE = rigid_labels(0), rigid_labels(1)
"""Positions outside and inside a part of an axis, where a field tells just these two apart."""


def part_label(origin: int) -> int:
    """The label of a part of a state tensor that the operator of an origin reduced by itself."""
    return rigid_labels(1 + origin)


def rigid_labels_of_units(units: Ints) -> Ints:
    """Rigid labels for units that turned out not to move, different from all other rigid labels."""
    return rigid_labels(_FROM_UNITS + units)
