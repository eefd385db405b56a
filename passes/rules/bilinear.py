"""The product of three tensors that `nn.Bilinear` is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fxrebasin.labels import Field, Value
from fxrebasin.passes.rules.contraction import pick_axes
from fxrebasin.passes.rules.movement import view_fields
from fxrebasin.passes.rules.registry import Call, rule


@rule("_trilinear")
def trilinear(call: Call) -> Sequence[Value]:
    """Each operand gets axes of size 1 at its `expand` positions; `sumdim` are summed over."""
    fields: list[Field] = []
    ndim = 0
    for number in "123":
        value, new = call.value(f"i{number}"), call.args[f"expand{number}"]
        ndim = len(value.shape) + len(new)
        fields += view_fields(call.ledger, value, _unsqueezed(new), 1)[0]
    joined = Value((), call.ledger.join(fields))
    kept = [axis for axis in range(ndim) if axis not in call.args["sumdim"]]
    reduced = call.ledger.reduce(joined, kept)
    return [Value(call.shape, tuple(pick_axes(item, kept) for item in reduced))]


def _unsqueezed(axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def move(labels: Tensor) -> Tensor:
        for axis in axes:
            labels = labels.unsqueeze(axis)
        return labels

    return move
