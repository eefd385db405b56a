"""Products of rows with one matrix of a stack each: experts that are chosen by data."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from fxrebasin.passes.fields.fields import Choice, Sliced, Stage, Value, pinned_value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.fields.slices import broadcast_slices, one_row
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import pin_everything, rule

_IN_BATCHES = pattern("e n k, e k m -> e n m")
_BY_EXPERT = pattern("!e r k, !e k n -> !e r n")


@rule("_grouped_mm")
def grouped_product(call: Call) -> Sequence[Value]:
    """`[rows, k], [experts, k, n] -> [rows, n]`: row r meets the matrix that offsets name.

    Which rows meet which expert depends on data: what tells rows apart is given up.
    """
    rows, stack = call.value("self"), call.value("mat2")
    if call.optional("bias") is not None or len(stack.shape) != 3:
        return pin_everything("products in groups of another layout")(call)
    if len(rows.shape) == 3:
        return [call.follow(_IN_BATCHES, rows, stack)]
    choice = grouped_choice(call)
    return [grouped_rows(call, call.of_any_row(rows, (0,), 2), choice)]


def grouped_choice(call: Call) -> Choice:
    """The expert of each row, which is the same for products with the same offsets."""
    offsets: Tensor = call.args["offs"]
    experts = call.args["mat2"].shape[0]
    grouped, numbers = call.lookup(offsets).grouped, call.numbers(offsets)
    if grouped is not None and grouped.stage is Stage.ENDS and grouped.count == experts:
        return Choice(grouped.routing, experts)
    key: Hashable = object() if numbers is None else ("ends", numbers.key)
    return Choice(key, experts)


def grouped_rows(call: Call, rows: Value, choice: Choice) -> Value:
    """The output, of one row for each expert, or of any row for all of them."""
    shape, stack = one_row(call.shape, (0,), choice.count), call.value("mat2")
    product = call.follow(_BY_EXPERT, rows, stack, shape=shape, reason="expert")
    return call.deferred(Sliced(choice, (0,), product, True), call.shape)


def grouped_of_slices(call: Call, sliced: Sliced) -> Value | None:
    """The output where the rows were computed with slices; None if with those of other experts."""
    choice = grouped_choice(call)
    if sliced.choice != choice or sliced.axes != (0,):
        return None
    return grouped_rows(call, broadcast_slices(sliced, 2), choice)


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
