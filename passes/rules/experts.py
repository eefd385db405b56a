"""Products of rows with one matrix of a stack each: experts that are chosen by data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxrebasin.labels import Field, Labels, Value, positions
from fxrebasin.passes.entries import ROUTED
from fxrebasin.passes.ledger import free_labels
from fxrebasin.passes.rules.contraction import contract
from fxrebasin.passes.rules.movement import move_labels
from fxrebasin.passes.rules.registry import Call, pin_everything, rule

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
        return [contract(call.ledger, "e n k, e k m -> e n m", [rows, stack], call.shape)]
    count, experts = rows.shape[0], stack.shape[0]
    if count < experts:
        text = "!t k, !e k n -> !t n"
        return [contract(call.ledger, text, [rows, stack], call.shape, None, "row chosen by data")]
    chosen = torch.arange(count) * experts // count
    routing = _routing(call, call.args["offs"])
    of_experts = _of_experts(call, rows, chosen, routing)
    shape = (experts, call.shape[1])
    text = "!e k, !e k n -> !e n"
    product = contract(call.ledger, text, [of_experts, stack], shape, None, "expert")
    found = _spread(call, product, chosen, routing)
    if count > 1:
        found.append(positions(2, 0, count, f"row chosen by data of {call.op}"))
    return [call.join(found)]


def _routing(call: Call, offsets: Tensor) -> str:
    """A name for a choice of rows, the same for products with the same offsets."""
    found = getattr(offsets, _ROUTING, "")
    if not found:
        found = f"{ROUTED} {call.ledger.origin}"
        setattr(offsets, _ROUTING, found)
    return found


def _of_experts(call: Call, rows: Value, chosen: Tensor, routing: str) -> Value:
    """The fields of one row for each expert.

    Rows that a product with the same offsets made belong to its experts; of others, any may meet
    any expert, and what tells them apart is given up.
    """
    first = torch.searchsorted(chosen, torch.arange(int(chosen[-1]) + 1))
    mine = [f for f in rows.fields if isinstance(f, Labels) and f.reason == routing]
    rest = Value(rows.shape, tuple(item for item in rows.fields if item not in mine))
    fields = call.ledger.reduce(call.pin_axes(rest, [0], "row chosen by data"), {1})
    taken = (free_labels(item.values.index_select(0, first)) for item in mine)
    fields += [item for item in taken if item is not None]
    return Value((len(first), rows.shape[1]), tuple(fields))


def _spread(call: Call, product: Value, chosen: Tensor, routing: str) -> list[Field]:
    """From experts to rows, marked with the choice of rows."""
    moved = move_labels(call, product, lambda labels: labels.index_select(0, chosen), [0])
    return [
        replace(item, reason=routing) if isinstance(item, Labels) and 0 in item.axes else item
        for item in moved.fields
        if not (isinstance(item, Labels) and item.rigid)
    ]
