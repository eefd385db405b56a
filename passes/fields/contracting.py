"""Fields of products and sums, by a factor string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.fields import Elements, Field, Labels, Value, onto_axes, positions
from fxrebasin.passes.fields.joining import axes_told_apart, join
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import pick_axes
from fxrebasin.passes.fields.patterns import (
    Axes,
    Pattern,
    factor_sizes,
    factors_of,
    merged,
    spelled_out,
)
from fxrebasin.passes.fields.reducing import reduce
from fxrebasin.passes.fields.reshaping import reshape_fields
from fxrebasin.passes.fields.together import together


def contract(
    ledger: Ledger,
    pattern: Pattern,
    values: Sequence[Value],
    out_shape: Sequence[int],
    known: Mapping[str, int] | None = None,
    reason: str = "position",
) -> Value:
    """Apply a factor string to the fields of its operands.

    `known` has the sizes of factors that shapes do not tell, and `reason` says why positions cannot
    move.
    """
    shapes = (*(value.shape for value in values), tuple(out_shape))
    space = _space(pattern, shapes, tuple((known or {}).items()))
    rigid = space.positions(reason)
    operands = [
        _to_factors(ledger, value, axes, space, rigid)
        for value, axes in zip(values, space.pattern.inputs, strict=True)
    ]
    inside = [space.places(axes) for axes in space.pattern.inputs]
    for one, two in combinations(range(len(operands)), 2):
        if inside[one] & inside[two]:
            _tie_shared(ledger, operands[one], operands[two], inside[one] & inside[two])
    out = space.places(space.pattern.output)
    result: list[Field] = []
    for fields, mine in zip(operands, inside, strict=True):
        result += reduce(ledger, Value((), tuple(fields)), mine & out)
    result += together(ledger, [item for fields in operands for item in fields], out)
    result += [item for axis, item in rigid.items() if axis in out]
    return Value(tuple(out_shape), _from_factors(ledger, join(ledger, result), space))


@dataclass(frozen=True)
class _Space:
    """What an operator loops over: an axis for each factor, with its size."""

    pattern: Pattern
    sizes: Mapping[str, int]

    def places(self, axes: Axes) -> set[int]:
        """The axes of the factors that a tensor has."""
        return {self.index[name] for name in factors_of(axes)}

    @cached_property
    def index(self) -> dict[str, int]:
        """The axis of each factor."""
        return {name: axis for axis, name in enumerate(self.sizes)}

    def positions(self, reason: str) -> dict[int, Field]:
        """What pins the factors that are positions, by axis."""
        return {
            axis: positions(len(self.sizes), axis, self.sizes[name], reason)
            for name, axis in self.index.items()
            if name in self.pattern.positions and self.sizes[name] > 1
        }


@lru_cache(maxsize=4096)
def _space(
    pattern: Pattern, shapes: tuple[tuple[int, ...], ...], known: tuple[tuple[str, int], ...]
) -> _Space:
    """What an operator loops over; remembered, since layers of one form loop over the same."""
    pattern = spelled_out(pattern, tuple(map(len, shapes)))
    sizes = factor_sizes(pattern, shapes, dict(known))
    pattern = merged(pattern, frozenset(name for name, size in sizes.items() if size == 1))
    names = dict.fromkeys(name for axes in pattern.tensors for name in factors_of(axes))
    return _Space(pattern, {name: sizes[name] for name in names})


def _to_factors(
    ledger: Ledger, value: Value, axes: Axes, space: _Space, rigid: Mapping[int, Field]
) -> list[Field]:
    target = [space.index[name] for name in factors_of(axes)]
    split = [
        space.sizes[name] if size != 1 else 1
        for size, axis in zip(value.shape, axes, strict=True)
        for name in axis
    ]
    parts = reshape_fields(ledger, value.fields, value.shape, split)
    fields = onto_axes(parts, target, len(space.sizes))
    held = {axis for item in fields for axis in item.axes}.intersection(target)
    met = [item for axis, item in rigid.items() if axis in held]
    return list(join(ledger, [*fields, *met])) if met else fields


def _tie_shared(
    ledger: Ledger, first: Sequence[Field], second: Sequence[Field], shared: set[int]
) -> None:
    """Two operands agree on the factors that they share.

    Labels of one operand are laid directly onto the elements of a state tensor on the other side,
    so that its units need not be created only to be tied. They are created where no labels tell
    all positions of a shared factor apart.
    """
    labels = [_labels_on(ledger, fields, shared) for fields in (first, second)]
    elements = [[f for f in fields if isinstance(f, Elements)] for fields in (first, second)]
    meeting = [*labels[0], *labels[1]]
    told_apart = axes_told_apart(meeting)
    fields: list[Field] = [*meeting]
    for here, there in ((0, 1), (1, 0)):
        for item in elements[there]:
            if meeting:
                join(ledger, [*meeting, item])
            open_axes = shared.intersection(item.axes) - told_apart
            if open_axes and (elements[here] or not labels[here]):
                fields += coarsen(ledger, item, shared)
    for field in join(ledger, fields):
        if isinstance(field, Labels):
            ledger.use(field)


def _labels_on(ledger: Ledger, fields: Sequence[Field], shared: set[int]) -> list[Labels]:
    parts = [part for f in fields if isinstance(f, Labels) for part in coarsen(ledger, f, shared)]
    parts += together(ledger, fields, shared)
    return [part for part in parts if isinstance(part, Labels)]


def _from_factors(ledger: Ledger, fields: Sequence[Field], space: _Space) -> tuple[Field, ...]:
    axes = space.pattern.output
    order = [space.index[name] for name in factors_of(axes)]
    split = [space.sizes[name] for name in factors_of(axes)]
    merged = [math.prod(space.sizes[name] for name in axis) for axis in axes]
    picked = (pick_axes(item, order) for item in fields)
    result = reshape_fields(ledger, picked, split, merged)
    return join(ledger, result) if split != merged else tuple(result)
