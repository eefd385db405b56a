"""Matrix products and convolutions: rules written as factors, in the style of einops.

A factor names an index space that the operator loops over. Factors that appear in two operands tie
those axes; factors that are missing from the output are summed over. `(g i)` is an axis that splits
into two factors; a factor that starts with `!` is a position and cannot be permuted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from torch import Tensor

from fxrebasin.passes.fields.fields import (
    Elements,
    Field,
    Labels,
    Value,
    elements_of,
    place,
    positions,
    reshape_groups,
)
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.rules.registry import Call, Rule, rule

Axes = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Pattern:
    """A parsed factor string: for each tensor, its axes as tuples of factors."""

    inputs: tuple[Axes, ...]
    output: Axes
    factors: tuple[str, ...]


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """Parse `"n (g i), (g o) i -> n (g o)"`."""
    left, _, right = text.partition("->")
    tensors = [_parse_axes(part) for part in [*left.split(","), right]]
    factors = dict.fromkeys(name for axes in tensors for axis in axes for name in axis)
    return Pattern(tuple(tensors[:-1]), tensors[-1], tuple(factors))


def _parse_axes(text: str) -> Axes:
    return tuple(tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", text))


@lru_cache(maxsize=1024)
def _merged(pattern: Pattern, ones: frozenset[str]) -> Pattern:
    """The pattern without the factors of size 1 of axes that are split: one group is none."""
    *inputs, output = (
        tuple(tuple(name for name in axis if name not in ones) or axis[:1] for axis in axes)
        for axes in (*pattern.inputs, pattern.output)
    )
    factors = dict.fromkeys(name for axes in (*inputs, output) for axis in axes for name in axis)
    return Pattern(tuple(inputs), output, tuple(factors))


def factor_sizes(
    pattern: Pattern, shapes: Sequence[Sequence[int]], known: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of all factors from the tensors' shapes; of a split axis one may be unknown."""
    sizes = dict(known)
    for axes, shape in zip([*pattern.inputs, pattern.output], shapes, strict=True):
        for names, size in zip(axes, shape, strict=True):
            unknown = [name for name in names if name not in sizes]
            for name in unknown[:1]:
                for other in names:
                    size //= sizes.get(other, 1)
                sizes[name] = size
    return sizes


def contract(
    ledger: Ledger,
    text: str,
    values: Sequence[Value],
    out_shape: Sequence[int],
    known: Mapping[str, int] | None = None,
    reason: str = "position",
) -> Value:
    """Apply a factor string to the fields of its operands."""
    pattern = parse(text)
    shapes = [value.shape for value in values] + [tuple(out_shape)]
    sizes = factor_sizes(pattern, shapes, known or {})
    pattern = _merged(pattern, frozenset(name for name, size in sizes.items() if size == 1))
    sizes = {name: sizes[name] for name in pattern.factors}
    operands = [
        _to_factors(ledger, value, axes, pattern, sizes, reason)
        for value, axes in zip(values, pattern.inputs, strict=True)
    ]
    index = {name: axis for axis, name in enumerate(pattern.factors)}
    inside = [{index[name] for axis in axes for name in axis} for axes in pattern.inputs]
    for one, two in combinations(range(len(operands)), 2):
        _tie_shared(ledger, operands[one], operands[two], inside[one] & inside[two])
    out = {index[name] for axis in pattern.output for name in axis}
    result: list[Field] = []
    for fields, mine in zip(operands, inside, strict=True):
        result += ledger.reduce(Value((), tuple(fields)), mine & out)
    result += ledger.together([item for fields in operands for item in fields], out)
    for name in pattern.factors:
        if name.startswith("!") and index[name] in out and sizes[name] > 1:
            result.append(positions(len(sizes), index[name], sizes[name], reason))
    joined = ledger.join(result)
    return Value(tuple(out_shape), _from_factors(ledger, joined, pattern, sizes))


def _to_factors(
    ledger: Ledger,
    value: Value,
    axes: Axes,
    pattern: Pattern,
    sizes: Mapping[str, int],
    reason: str,
) -> list[Field]:
    names = [name for axis in axes for name in axis]
    split = [
        sizes[name] if value.shape[i] != 1 else 1 for i, axis in enumerate(axes) for name in axis
    ]
    target = [pattern.factors.index(name) for name in names]
    ndim = len(pattern.factors)
    fields: list[Field] = []
    for item in value.fields:
        for part in reshape_field(ledger, item, value.shape, split):
            fields.append(place(part, target, ndim))
    rigid = []
    for axis, name in zip(target, names, strict=True):
        if name.startswith("!") and any(axis in item.axes for item in fields):
            rigid.append(positions(ndim, axis, sizes[name], reason))
    return list(ledger.join([*fields, *rigid])) if rigid else fields


def reshape_field(
    ledger: Ledger, item: Field, before: Sequence[int], after: Sequence[int]
) -> list[Field]:
    """Reshape one field; several come out when a state tensor's elements cannot be viewed so."""
    if tuple(before) == tuple(after):
        return [item]
    if isinstance(item, Labels):
        found = ledger.reshaped(item, tuple(before), tuple(after))
        return [] if found is None else [found]
    try:
        viewed = elements_of(item.state, whole_view(item, before).view(tuple(after)))
    except RuntimeError:
        together = [axes_in for axes_in, _ in reshape_groups(before, after)]
        return [
            part
            for labels in ledger.separate(item, together)
            for part in reshape_field(ledger, labels, before, after)
        ]
    return [] if viewed is None else [viewed]


def whole_view(item: Elements, shape: Sequence[int]) -> Tensor:
    """The view of a field, expanded to the shape of the tensor that it is a field of."""
    view = item.view
    for axis in range(view.ndim):
        if axis not in item.axes:
            view = view.narrow(axis, 0, 1)
    return view.expand(tuple(shape))


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
    told_apart = ledger.identified(meeting)
    fields: list[Field] = [*meeting]
    for here, there in ((0, 1), (1, 0)):
        for item in elements[there]:
            if meeting:
                ledger.join([*meeting, item])
            open_axes = shared.intersection(item.axes) - told_apart
            if open_axes and (elements[here] or not labels[here]):
                fields += ledger.coarsen(item, shared)
    for field in ledger.join(fields):
        if isinstance(field, Labels):
            ledger.use(field)


def _labels_on(ledger: Ledger, fields: Sequence[Field], shared: set[int]) -> list[Labels]:
    parts = [part for f in fields if isinstance(f, Labels) for part in ledger.coarsen(f, shared)]
    parts += ledger.together(fields, shared)
    return [part for part in parts if isinstance(part, Labels)]


def _from_factors(
    ledger: Ledger, fields: Sequence[Field], pattern: Pattern, sizes: Mapping[str, int]
) -> tuple[Field, ...]:
    names = [name for axis in pattern.output for name in axis]
    order = [pattern.factors.index(name) for name in names]
    split = [sizes[name] for name in names]
    merged = []
    for axis in pattern.output:
        size = 1
        for name in axis:
            size *= sizes[name]
        merged.append(size)
    result: list[Field] = []
    for item in fields:
        picked = pick_axes(item, order)
        result += reshape_field(ledger, picked, split, merged)
    return ledger.join(result) if tuple(split) != tuple(merged) else tuple(result)


def pick_axes(item: Field, order: Sequence[int]) -> Field:
    """Keep only the given axes, in their order (the field varies along no other)."""
    axes = tuple(sorted(order.index(axis) for axis in item.axes))
    if isinstance(item, Labels):
        drop = [axis for axis in range(item.values.ndim) if axis not in order]
        values = item.values.permute([*order, *drop]).reshape([item.values.shape[a] for a in order])
        return replace(item, values=values, axes=axes)
    drop = [axis for axis in range(item.view.ndim) if axis not in order]
    view = item.view.permute([*order, *drop])
    for _ in drop:
        view = view.select(-1, 0)
    return Elements(item.state, view, axes)


def contraction(text: str, *names: str) -> Rule:
    """Rule of an operator whose tensor arguments, in order, are the operands of a pattern."""

    def apply(call: Call) -> Sequence[Value]:
        values = [call.lookup(tensor) for tensor in call.tensors()]
        return [contract(call.ledger, text, values, call.shape)]

    return rule(*names)(apply)


contraction("n k, k m -> n m", "mm.default")
contraction("b n k, b k m -> b n m", "bmm.default")
contraction("n k, k -> n", "mv")
contraction("k, k -> ", "dot", "vdot")
contraction("n, m -> n m", "outer", "ger")


def plus_contraction(text: str, first: str, second: str, *names: str) -> Rule:
    """Rule of `self + first @ second`."""

    def apply(call: Call) -> Sequence[Value]:
        product = contract(call.ledger, text, [call.value(first), call.value(second)], call.shape)
        bias = call.broadcast(call.value("self"), len(call.shape))
        return [call.join([*product.fields, *bias])]

    return rule(*names)(apply)


plus_contraction("n k, k m -> n m", "mat1", "mat2", "addmm.default", "addmm_")
plus_contraction("b n k, b k m -> b n m", "batch1", "batch2", "baddbmm.default", "baddbmm_")
plus_contraction("n k, k -> n", "mat", "vec", "addmv")


@rule("linear")
def linear(call: Call) -> Sequence[Value]:
    """`input @ weight.T + bias`, over any number of leading axes."""
    leading = " ".join(f"n{i}" for i in range(len(call.shape) - 1))
    text = f"{leading} i, o i -> {leading} o"
    product = contract(call.ledger, text, [call.value("input"), call.value("weight")], call.shape)
    return [_plus_bias(call, product, axis=-1)]


@rule("convolution", "_convolution")
def convolution(call: Call) -> Sequence[Value]:
    """Dense, grouped, depthwise and transposed convolution, in one to three dimensions."""
    value, weight = call.value("input"), call.value("weight")
    before, filters, after = convolution_patterns(call, len(value.shape), len(weight.shape))
    text = f"{before}, {filters} -> {after}"
    reason = f"position of {call.op}"
    known = {"g": call.args["groups"]}
    product = contract(call.ledger, text, [value, weight], call.shape, known, reason)
    return [_plus_bias(call, product, axis=len(call.shape) - len(weight.shape) + 1)]


def convolution_patterns(call: Call, ndim: int, ndim_of_weight: int) -> tuple[str, str, str]:
    """Factors of a convolution's input of some dimensions, of its filters and of its output."""
    spatial = range(ndim_of_weight - 2)
    apart = [axis for axis in spatial if not _is_pointwise(call, axis)]
    s, t = (
        " ".join(f"!{name}{axis}" if axis in apart else f"same{axis}" for axis in spatial)
        for name in "st"
    )
    k = " ".join(f"!k{axis}" for axis in spatial)
    filters = f"(g i) o {k}" if call.args.get("transposed", False) else f"(g o) i {k}"
    batch = "n " if ndim == ndim_of_weight else ""
    return f"{batch}(g i) {s}", filters, f"{batch}(g o) {t}"


def _is_pointwise(call: Call, axis: int) -> bool:
    """Each position along a spatial axis goes to the same position of the output, and no other."""
    stride, padding = (
        call.args[name][axis % len(call.args[name])] for name in ("stride", "padding")
    )
    extra = call.args.get("output_padding") or [0]
    return (
        call.args["weight"].shape[2 + axis] == 1 and stride == 1 and padding == 0 and not any(extra)
    )


def _plus_bias(call: Call, product: Value, axis: int) -> Value:
    bias = call.optional("bias")
    if bias is None:
        return product
    ndim = len(product.shape)
    placed = [place(item, [axis % ndim], ndim) for item in bias.fields]
    return call.join([*product.fields, *placed])
