"""Numbers that name units: the index of the largest, of the nearest, of the best few.

Permuting the units along an axis renames them: a search along the axis gives back other numbers,
and on an axis whose units are permuted alike, these stand for what the old ones did. Looked up
there or compared with all positions there, the numbers pin nothing. Anything else that reads them
pins the units, and so does a search that may find several equal numbers: it gives back the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import Labels, Value, onto_axes
from fxrebasin.passes.fields.labels import rigid_labels
from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.registry import overloads, rule

LOOKING_UP = frozenset(
    overload
    for name in (
        *("embedding", "index_select", "gather", "index.Tensor", "_unsafe_index.Tensor"),
        *("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce"),
        *("scatter_reduce_", "eq.Tensor", "clone", "_to_copy", "sort"),
        *("_embedding_bag", "_embedding_bag_forward_only"),
    )
    for overload in overloads(name)
)
"""Operators whose rules ask whether the numbers that they read are names of units."""

_ORDER = "order-dependent operator"

_WHOLE = (torch.int32, torch.int64)
_EXACT = (*_WHOLE, torch.float32, torch.float64)


def found_at(
    call: Call,
    axis: int,
    results: Callable[[Value], Value],
    *,
    largest: bool,
    may_be_named: bool = True,
) -> Value:
    """The numbers that a search along an axis of `self` gives back.

    Args:
        call: of the search.
        axis: of the operand.
        results: the value of the numbers, from that of the operand.
        largest: whether it is the largest value that is searched for.
        may_be_named: whether they depend on nothing but the values along the axis.
    """
    value = call.value("self")
    several = bool(value.shape) and value.shape[axis] > 1
    apart = may_be_named and several and call.apart(call.args["self"], axis, largest)
    search = _Search(call, value, axis, results, call.where)
    named = search.named if apart else None
    return replace(results(value), when_read=search.read, when_named=named)


@dataclass(eq=False)
class _Search:
    """A search along an axis, of which it is not known yet how its numbers are read.

    Attributes:
        call: of the search; other calls were made since, once the numbers are read.
        value: of the operand.
        axis: of the operand.
        results: the value of the numbers, from that of the operand.
        where: in the model the search is.
        units: which the numbers name, after they were asked for.
    """

    call: Call
    value: Value
    axis: int
    results: Callable[[Value], Value]
    where: Origin
    units: list[Labels] = field(default_factory=list)

    def read(self) -> Value:
        """Something reads the numbers as such."""
        for item in self.units:
            self.call.pin_units(item, _ORDER)
        return self.results(self.call.pin_axes(self.value, [self.axis], _ORDER))

    def named(self) -> Value:
        """Something looks the numbers up: they name units."""
        value, axis = self.value, self.axis
        made = Labels(self.call.fresh(value.shape[axis]), (0,), injective=True)
        self.units.append(made)
        self.call.note(
            f"{self.where} chooses among units that may be exchanged, and takes the first of equal "
            "values: their order counts where parameters are equal, as zeros are"
        )
        placed = onto_axes([made], [axis], len(value.shape))
        met = self.call.join([*value.fields, *placed], value.shape)
        return replace(self.results(met), when_read=self.read, names=made)


def looked_up(call: Call, value: Value, axis: int, index: Tensor, reason: str) -> Value:
    """A tensor whose positions along an axis are named by an index, where the two meet.

    Args:
        call: of the look-up.
        value: of the tensor.
        axis: of the tensor.
        index: the numbers.
        reason: why the axis is pinned if the numbers do not name its units.
    """
    units = units_on(call.named(index), value.shape[axis])
    if units is None:
        call.lookup(index)
        return call.pin_axes(value, [axis], reason)
    return call.join([*value.fields, *onto_axes([units], [axis], len(value.shape))], value.shape)


def numbers_in(call: Call, index: Tensor) -> Value:
    """The value of an index, after the tensor that it chooses from met its numbers."""
    return call.named(index) or call.lookup(index)


def units_on(named: Value | None, size: int) -> Labels | None:
    """The units that numbers name, along an axis of some size; None if they may not fit.

    No unit is at positions beyond those that can be named.
    """
    units = None if named is None else named.names
    if units is None or units.values.numel() > size:
        return None
    beyond = rigid_labels(torch.arange(size - units.values.numel()))
    return Labels(torch.cat([units.values, beyond]), (0,), injective=True)


@rule("clone", "_to_copy")
def copied(call: Call) -> Sequence[Value]:
    """The same numbers at the same positions."""
    found = call.named(call.args["self"])
    if found is None or call.outputs[0].dtype not in _WHOLE:
        value = call.value("self")
        grouped = value.grouped if call.outputs[0].dtype in _EXACT else None
        return [Value(call.shape, value.fields, grouped=grouped)]
    plain = Value(call.shape, found.fields)

    def read() -> Value:
        if found.when_read is not None:
            found.when_read()
        return plain

    return [replace(plain, when_read=read, names=found.names)]


@rule("eq.Tensor")
def compared(call: Call) -> Sequence[Value]:
    """Numbers that are compared with all positions on an axis: a row of zeros and a one each."""
    ndim = len(call.shape)
    for one, other in (("self", "other"), ("other", "self")):
        named = call.named(call.args[one])
        axis = None if named is None else _counting(call, call.args[other])
        units = None if axis is None else units_on(named, call.shape[axis])
        if named is not None and axis is not None and units is not None:
            fields = call.broadcast(named, ndim)
            if not any(axis in item.axes for item in fields):
                return [call.join([*fields, *onto_axes([units], [axis], ndim)])]
    return pointwise(call)


def _counting(call: Call, tensor: Tensor) -> int | None:
    """The axis of the output along which a constant counts up from 0; None if it does not."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    known = call.constant(tensor) if len(axes) == 1 else None
    if known is None or not torch.equal(known.reshape(-1).cpu(), torch.arange(known.numel())):
        return None
    return len(call.shape) - tensor.ndim + axes[0]
