"""One call of an operator, as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from fxrebasin.passes.fields.aligning import concatenate_values
from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.contracting import contract
from fxrebasin.passes.fields.elements import MERGED_AT_MOST, by_axis, materialise, separate
from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    Sliced,
    Value,
    onto_axes,
    pinned_value,
    positions,
)
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import (
    chosen_labels,
    materialised,
    met,
    move_labels,
    pick_axes,
    put_at,
    view_fields,
)
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.fields.patterns import Pattern
from fxrebasin.passes.fields.reducing import reduce
from fxrebasin.passes.fields.reshaping import reshape_fields, reshape_value
from fxrebasin.passes.fields.slices import (
    Numbers,
    deferred,
    of_any_row,
    reshape_slices,
    view_slices,
)


@dataclass(frozen=True, eq=False)
class Call:
    """One operator call.

    Attributes:
        ledger: where constraints are recorded.
        op: the overload.
        args: all arguments by their schema name, defaults included.
        outputs: the tensor outputs, in order (of the right shapes; their data mean nothing).
        lookup: the value of a tensor argument.
        constant: the data of a tensor argument that depends on no parameter and no input, or None.
        running_statistics: the value of a buffer that is read as such.
        strides: of the tensor arguments, in order, before the call.
        named: the value of a tensor argument whose numbers are names of units, or None. What is
            not read so has to be looked up.
        apart: whether numbers of a tensor argument along an axis are equal by accident only: all,
            or the largest.
        numbers: what is known of whole numbers in a tensor argument that depends on data.
    """

    ledger: Ledger
    op: OpOverload
    args: Mapping[str, Any]
    outputs: Sequence[Tensor]
    lookup: Callable[[Tensor], Value]
    constant: Callable[[Tensor], Tensor | None]
    running_statistics: Callable[[Tensor], Value]
    strides: Sequence[tuple[int, ...]]
    named: Callable[[Tensor], Value | None]
    apart: Callable[[Tensor, int, bool], bool]
    numbers: Callable[[Tensor], Numbers | None]

    def value(self, name: str) -> Value:
        """The value of a tensor argument."""
        return self.lookup(self.args[name])

    def optional(self, name: str) -> Value | None:
        """The value of a tensor argument that may be left out."""
        tensor = self.args.get(name)
        return None if tensor is None else self.lookup(tensor)

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, those in lists included."""
        found: list[Tensor] = []
        for item in self.args.values():
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, (list, tuple)):
                found += [part for part in item if isinstance(part, Tensor)]
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.outputs[0].shape)

    @property
    def rank(self) -> int:
        """How many axes the first output has."""
        return len(self.shape)

    @property
    def origin(self) -> int:
        """The number of this call among all that were met."""
        return self.ledger.origin

    @property
    def where(self) -> Origin:
        """Where in the model this call is."""
        return self.ledger.origins[-1]

    def note(self, text: str) -> None:
        """Say something to the reader of the report."""
        self.ledger.notes.setdefault(text)

    # What the fields of operands become -------------------------------------------------------

    def follow(
        self,
        pattern: Pattern,
        *operands: Value,
        reason: str = "position",
        shape: Sequence[int] | None = None,
        **known: int,
    ) -> Value:
        """The output of an operator that does to axes what a factor string says.

        Args:
            pattern: the factor string, parsed.
            operands: their values, in order.
            reason: why the positions that it names cannot move.
            shape: of the output, by default the first one.
            known: sizes of factors that shapes do not tell.
        """
        size = self.shape if shape is None else tuple(shape)
        return contract(self.ledger, pattern, operands, size, known, f"{reason} of {self.op}")

    def join(self, fields: Iterable[Field], shape: Sequence[int] | None = None) -> Value:
        """Let fields meet in one tensor, by default the first output."""
        size = self.shape if shape is None else tuple(shape)
        return Value(size, join(self.ledger, fields))

    def broadcast(self, value: Value, ndim: int) -> list[Field]:
        """The fields of a value that is broadcast to `ndim` dimensions."""
        offset = ndim - len(value.shape)
        if offset == 0:
            return list(value.fields)
        return onto_axes(value.fields, range(offset, ndim), ndim)

    def note_taps(self, filters: Value, axes: Iterable[int]) -> None:
        """Write down that some axes of filters are their taps, also where only one is read."""
        for item in filters.fields:
            if isinstance(item, Elements):
                self.ledger.taps.append(Elements(item.state, item.view, tuple(axes)))

    def pin_axes(self, value: Value, axes: Iterable[int], reason: str) -> Value:
        """The value after giving up all freedom along some of its axes."""
        pinned = pinned_value(value.shape, f"{reason} of {self.op}").fields
        wanted = {axis % max(len(value.shape), 1) for axis in axes}
        rigid = [item for item in pinned if set(item.axes) <= wanted]
        touched = {axis for item in value.fields for axis in item.axes} & wanted
        if not touched:
            return value
        met = [item for item in rigid if set(item.axes) <= touched]
        return Value(value.shape, join(self.ledger, [*value.fields, *met]))

    def reduce(self, value: Value, kept: Collection[int]) -> list[Field]:
        """What is left of a tensor that is summed, or the like, over all but the kept axes."""
        return reduce(self.ledger, value, kept)

    def reduced(self, value: Value, kept: Sequence[int]) -> list[Field]:
        """As `reduce`, without the axes that are reduced."""
        return [pick_axes(item, kept) for item in reduce(self.ledger, value, kept)]

    def with_statistics(self, value: Value, kept: Collection[int]) -> list[Field]:
        """A tensor that meets its own statistics, taken over all but the kept axes."""
        return [*value.fields, *reduce(self.ledger, value, kept)]

    def coarsen(self, item: Field, kept: Collection[int]) -> tuple[Field, ...]:
        """What is left of a field when only the kept axes are looked at."""
        return coarsen(self.ledger, item, kept)

    def reshape(
        self, fields: Iterable[Field], before: Sequence[int], after: Sequence[int]
    ) -> list[Field]:
        """Fields of a tensor that is given another shape."""
        return reshape_fields(self.ledger, fields, before, after)

    def view(
        self, value: Value, move: Callable[[Tensor], Any], outputs: int = 1
    ) -> list[tuple[Field, ...]]:
        """The fields of each output of an operator that only changes strides.

        Args:
            value: of the operand.
            move: the operator, which is run on the labels.
            outputs: how many there are.
        """
        return view_fields(self.ledger, value, move, outputs)

    def move(self, value: Value, move: Callable[[Tensor], Tensor], axes: Sequence[int]) -> Value:
        """The first output of an operator that copies positions along some axes to others.

        Args:
            value: of the operand.
            move: the operator, which is run on the labels.
            axes: that it works on.
        """
        return move_labels(self.ledger, value, move, axes, self.shape)

    def side_by_side(self, values: Sequence[Value], dim: int) -> Value:
        """The first output, of pieces along one axis."""
        return concatenate_values(self.ledger, values, dim, self.shape)

    def met(self, fields: Sequence[Field]) -> Value:
        """The first output, of fields of one operand whose positions were moved."""
        return Value(self.shape, met(self.ledger, fields))

    def reshaped(self, value: Value) -> Value:
        """The first output, of the same elements in the same order."""
        return reshape_value(self.ledger, value, self.shape)

    def fresh(self, count: int) -> Tensor:
        """New units."""
        return self.ledger.fresh(count)

    def pin_units(self, units: Labels, reason: str) -> None:
        """Give up all freedom of some units."""
        self.ledger.pin(units.values.numpy(), f"{reason} of {self.op}")

    def as_labels(self, value: Value) -> Value | None:
        """The tensor with units for each of its elements; None if there are too many."""
        open_ones = [item for item in value.fields if isinstance(item, Elements)]
        if any(item.view.numel() > MERGED_AT_MOST for item in open_ones):
            return None
        found = (f if isinstance(f, Labels) else materialise(self.ledger, f) for f in value.fields)
        return self.join(found, value.shape)

    def separate(self, elements: Elements) -> list[Labels]:
        """Labels for the elements of a state tensor's view, along several axes if they are few."""
        return separate(self.ledger, elements)

    def by_axis(self, elements: Elements) -> list[Labels]:
        """Labels for the elements of a state tensor's view, a field for each axis."""
        return by_axis(self.ledger, elements)

    def materialised(self, value: Value, axes: Collection[int]) -> list[Field]:
        """The fields of a tensor, those that vary along given axes as labels."""
        return materialised(self.ledger, value, set(axes))

    def put_at(self, value: Value, axis: int, places: Tensor) -> list[Field]:
        """The fields of slices along an axis, at places along that of the first output."""
        return put_at(self.ledger, value, axis, places, self.shape)

    def of_any_row(self, value: Value, rows: Sequence[int], rank: int) -> Value:
        """What meets each slice of a tensor without slices, broadcast to a rank."""
        return of_any_row(self.ledger, value, rows, rank)

    def deferred(
        self, sliced: Sliced, shape: Sequence[int], read: Callable[[], Value] | None = None
    ) -> Value:
        """The value of a tensor of which it is not known yet whether it is read row by row."""
        return deferred(self.ledger, sliced, shape, read)

    def reshape_slices(
        self, sliced: Sliced, before: Sequence[int], after: Sequence[int]
    ) -> Sliced | None:
        """Rows after a reshape that keeps them apart."""
        return reshape_slices(self.ledger, sliced, before, after)

    def view_slices(
        self, sliced: Sliced, before: Sequence[int], move: Callable[[Tensor], Tensor]
    ) -> Sliced | None:
        """Rows after a view that keeps them apart."""
        return view_slices(self.ledger, sliced, before, move)

    def chosen(self, values: Tensor, source: Labels) -> list[Labels]:
        """A field of labels at positions that were chosen from a field; none if it says nothing."""
        return chosen_labels(self.ledger, values, source)

    def positions(self, axes: Iterable[int], reason: str) -> list[Field]:
        """What pins the first output along some axes, for a reason."""
        return [
            positions(self.rank, axis, self.shape[axis], f"{reason} of {self.op}")
            for axis in axes
            if axis < self.rank and self.shape[axis] > 1
        ]
