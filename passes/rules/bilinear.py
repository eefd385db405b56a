"""The product of three tensors that `nn.Bilinear` is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fxrebasin.passes.fields.fields import Field, Value
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import pin_everything, rule


@rule("_trilinear")
def trilinear(call: Call) -> Sequence[Value]:
    """Each operand gets axes of size 1 at its `expand` positions; `sumdim` are summed over."""
    ndim = len(call.args["i1"].shape) + len(call.args["expand1"])
    fields: list[Field] = []
    sizes: list[set[int]] = [set() for _ in range(ndim)]
    for number in "123":
        value = call.value(f"i{number}")
        new = sorted(axis % ndim for axis in call.args[f"expand{number}"])
        for axis, size in zip((a for a in range(ndim) if a not in new), value.shape, strict=True):
            sizes[axis].add(size)
        fields += call.view(value, _unsqueezed(new))[0]
    if any(len(found) > 1 for found in sizes):
        return pin_everything("sizes that differ, of which the operator takes a part")(call)
    joined = call.join(fields, [max(found) for found in sizes])
    summed = {axis % ndim for axis in call.args["sumdim"]}
    kept = [axis for axis in range(ndim) if axis not in summed]
    return [Value(call.shape, tuple(call.reduced(joined, kept)))]


def _unsqueezed(axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def move(labels: Tensor) -> Tensor:
        for axis in axes:
            labels = labels.unsqueeze(axis)
        return labels

    return move
