"""Products of rows with one matrix of a stack each: experts that are chosen by data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxrebasin.passes.fields.fields import (
    Field,
    Labels,
    Routing,
    Stage,
    Value,
    free_labels,
    pinned_value,
)
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import pin_everything, rule

_IN_BATCHES = pattern("e n k, e k m -> e n m")
_BY_DATA = pattern("!t k, !e k n -> !t n")
_BY_EXPERT = pattern("!e k, !e k n -> !e n")
_ROUTING = "_fxrebasin_routing"


@rule("_grouped_mm")
def grouped_product(call: Call) -> Sequence[Value]:
    """`[rows, k], [experts, k, n] -> [rows, n]`: row r meets the matrix that offsets name.

    Which rows meet which expert depends on data. The rule looks at one choice in which every
    expert has rows: wherever rows are not told apart again by data, what holds for one row of an
    expert holds for all.
    """
    rows, stack = call.value("self"), call.value("mat2")
    if call.optional("bias") is not None or len(stack.shape) != 3:
        return pin_everything("products in groups of another layout")(call)
    if len(rows.shape) == 3:
        return [call.follow(_IN_BATCHES, rows, stack)]
    count, experts = rows.shape[0], stack.shape[0]
    if count < experts:
        return [call.follow(_BY_DATA, rows, stack, reason="row chosen by data")]
    chosen = _one_choice(count, experts)
    routing = _routing(call, call.args["offs"], experts)
    of_experts = _of_experts(call, rows, chosen, routing)
    shape = (experts, call.shape[1])
    product = call.follow(_BY_EXPERT, of_experts, stack, shape=shape, reason="expert")
    found = _to_rows(call, product, chosen, routing)
    return [call.join([*found, *call.positions([0], "row chosen by data")])]


def _one_choice(rows: int, experts: int) -> Tensor:
    """The expert of each row, where every expert has rows."""
    return torch.arange(rows) * experts // rows


def rows_of_experts(call: Call, value: Value, index: Tensor) -> Value | None:
    """`[experts, n], [rows] -> [rows, n]`: rows in groups are given what belongs to their expert.

    Args:
        call: of the look-up.
        value: of what is looked up, such as the experts' biases.
        index: the numbers of experts; sorted, with all of them in range.

    Returns:
        The value; None if rows were not sorted by these numbers.
    """
    grouped = call.lookup(index).grouped
    if grouped is None or grouped.stage is not Stage.NUMBERS or len(value.shape) != 2:
        return None
    rows, experts = index.numel(), value.shape[0]
    if grouped.count != experts or not 1 < experts <= rows:
        return None
    held = call.pin_axes(value, [0], "expert")
    shown = call.as_labels(held)
    if shown is None:
        return None
    found = _to_rows(call, shown, _one_choice(rows, experts), grouped.routing)
    return call.join([*found, *call.positions([0], "row chosen by data")])


@rule("histc")
def counted_in_groups(call: Call) -> Sequence[Value]:
    """How many numbers are in each of equal parts of a range, which may be the groups."""
    value = call.value("self")
    call.pin_axes(value, range(len(value.shape)), "counted by value")
    counts = pinned_value(call.shape, f"counted by value of {call.op}")
    grouped, bins = value.grouped, call.args["bins"]
    one_each = grouped is not None and bins == grouped.count == call.args["max"] + 1
    if grouped is None or not one_each or grouped.stage is not Stage.NUMBERS or call.args["min"]:
        return [counts]
    return [replace(counts, grouped=replace(grouped, stage=Stage.COUNTS))]


def _routing(call: Call, offsets: Tensor, experts: int) -> Routing:
    """The choice of rows, which is the same for products with the same offsets."""
    grouped = call.lookup(offsets).grouped
    if grouped is not None and grouped.stage is Stage.ENDS and grouped.count == experts:
        return grouped.routing
    found: Routing | None = getattr(offsets, _ROUTING, None)
    if found is None:
        found = Routing(call.origin)
        setattr(offsets, _ROUTING, found)
    return found


def _of_experts(call: Call, rows: Value, chosen: Tensor, routing: Routing) -> Value:
    """The fields of one row for each expert.

    Rows that a product with the same offsets made belong to its experts; of others, any may meet
    any expert, and what tells them apart is given up.
    """
    first = torch.searchsorted(chosen, torch.arange(int(chosen[-1]) + 1))
    mine = [f for f in rows.fields if isinstance(f, Labels) and f.routing == routing]
    rest = Value(rows.shape, tuple(item for item in rows.fields if item not in mine))
    fields = call.reduce(call.pin_axes(rest, [0], "row chosen by data"), {1})
    taken = (free_labels(item.values.index_select(0, first)) for item in mine)
    fields += [item for item in taken if item is not None]
    return Value((len(first), rows.shape[1]), tuple(fields))


def _to_rows(call: Call, product: Value, chosen: Tensor, routing: Routing) -> list[Field]:
    """From experts to rows, marked with the choice of rows."""
    moved = call.move(product, lambda labels: labels.index_select(0, chosen), [0])
    return [
        replace(item, routing=routing) if isinstance(item, Labels) and 0 in item.axes else item
        for item in moved.fields
        if not (isinstance(item, Labels) and item.rigid)
    ]
