"""The table of the grammar: name of a kind of step -> what writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.fuzz.scope import Cursor, Emit

GRAMMAR: dict[str, Emit] = {}
ENDINGS: list[str] = []
"""Steps that programs end with: what units hold is summed over."""


def step(emit: Emit) -> Emit:
    """Register a step under the name of its function."""
    GRAMMAR[emit.__name__] = emit
    return emit


def ending(emit: Emit) -> Emit:
    """Register a step that programs may also end with."""
    ENDINGS.append(emit.__name__)
    return step(emit)


def has_axes(least: int, most: int = 5) -> Callable[[tuple[int, ...]], bool]:
    """Shapes with some number of axes."""
    return lambda shape: least <= len(shape) <= most


def ones_but(ndim: int, axes: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The shape of what is broadcast along all axes but some."""
    return [shape[axis] if axis in axes else 1 for axis in range(ndim)]


def at(axis: int, text: object) -> str:
    """The subscript of a part of one axis."""
    return f"[{':, ' * axis}{text}]"


def without(shape: Sequence[int], *axes: int) -> tuple[int, ...]:
    """The sizes of all axes but some."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def full(cursor: Cursor, name: str, shape: Sequence[int] | None = None) -> str:
    """Sizes as text; the first as that of a variable, for the batch may be of any size."""
    sizes = cursor.shapes[name] if shape is None else shape
    return ", ".join([f"{name}.shape[0]", *map(str, sizes[1:])])
