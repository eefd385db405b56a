"""Fields of tensors whose axes are summed, averaged or otherwise reduced."""

from __future__ import annotations

from collections.abc import Collection

from fxrebasin.passes.fields.coarsening import coarsen
from fxrebasin.passes.fields.fields import Elements, Field, Value
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.together import together


def reduce(ledger: Ledger, value: Value, kept: Collection[int]) -> list[Field]:
    """The fields of a tensor that is reduced over all but the kept axes, which get size 1."""
    for item in value.fields:
        if isinstance(item, Elements):
            if not set(item.axes) & set(kept):
                ledger.used_parts.append(item)
        elif not set(item.axes) <= set(kept):
            ledger.use(item)
    found = [part for item in value.fields for part in coarsen(ledger, item, kept)]
    found += together(ledger, value.fields, kept)
    crossed = any(0 < len(set(item.axes) & set(kept)) < len(item.axes) for item in value.fields)
    # What several fields say of one kept position meets there, if only now.
    return list(join(ledger, found)) if crossed and len(found) > 1 else found
