"""Sums over units of a class, and products that sum over them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import fx

from fxrebasin.passes.kinds.marks import (
    Mark,
    Value,
    complete,
    overlap,
    raised,
    reshaped,
)
from fxrebasin.passes.kinds.walk import Step, handles, name_of, shape_of
from fxrebasin.passes.rules.scaling import Parity, Scaling


@handles("sum", "mean")
def _sum(step: Step) -> list[Value]:
    dims, keep = step.args.get("dim"), bool(step.args.get("keepdim"))
    return [step.reduce("self", dims, keep, step.analysis.carried)]


@handles("avg_pool2d", "_adaptive_avg_pool2d", "avg_pool1d", "_adaptive_avg_pool3d", "avg_pool3d")
def _average(step: Step) -> list[Value]:
    spatial = {"1": 1, "2": 2, "3": 3}[name_of(step.node).rstrip("d")[-1]]
    rank = len(step.shape)
    marks = step.value(step.args["self"])
    if any(axis >= rank - spatial for mark in marks for axis in mark.axes()):
        return step.give_up()
    return [step.each(step.analysis.carried)]


@handles("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(step: Step) -> list[Value]:
    spatial = 2 if "2d" in name_of(step.node) else 3
    rank = len(shape_of(step.args["self"]))
    marks = step.value(step.args["self"])
    if any(axis >= rank - spatial for mark in marks for axis in mark.axes()):
        return step.give_up()
    return [step.each(step.analysis.largest), ()]


@handles("amax")
def _amax(step: Step) -> list[Value]:
    marks = step.value(step.args["self"])
    rank = len(shape_of(step.args["self"]))
    dims = {dim % rank for dim in step.args["dim"]} or set(range(rank))
    if any(set(mark.axes()) & dims for mark in marks):
        return step.give_up()
    return [step.reduce("self", sorted(dims), bool(step.args["keepdim"]), step.analysis.largest)]


@handles("var_mean")
def _var_mean(step: Step) -> list[Value]:
    dims = step.args.get("dim")
    rank = len(shape_of(step.args["self"]))
    axes = {dim % rank for dim in dims} if dims else set(range(rank))
    marks = step.value(step.args["self"])
    size = step.analysis.size
    if not any(set(mark.axes()) & axes for mark in marks):  # of each unit by itself
        keep = bool(step.args.get("keepdim"))
        mean = step.reduce("self", dims, keep, step.analysis.carried)
        square = Scaling(Fraction(2), Parity.EVEN)
        return [step.reduce("self", dims, keep, lambda m: step.analysis.scaled(m, square)), mean]
    if not all(
        set(mark.inner_axes(size)) <= axes and complete(mark.units, sorted(axes), size)
        for mark in marks
    ):
        return step.give_up()
    for mark in marks:
        step.analysis.summed(mark)
        squared = Mark(mark.units, step.analysis.multiplied(mark, mark))
        step.analysis.summed(squared)
    return [(), ()]


@handles("mm")
def _mm(step: Step) -> list[Value]:
    return [step.contract(step.args["self"], step.args["mat2"], ("nk", "km", "nm"))]


@handles("bmm")
def _bmm(step: Step) -> list[Value]:
    return [step.contract(step.args["self"], step.args["mat2"], ("bnk", "bkm", "bnm"))]


@handles("mv")
def _mv(step: Step) -> list[Value]:
    return [step.contract(step.args["self"], step.args["vec"], ("nk", "k", "n"))]


@handles("embedding")
def _embedding(step: Step) -> list[Value]:
    rank = len(step.shape)
    found = []
    for mark in step.value(step.args["weight"]):
        if mark.units.shape[0] > 1:
            step.give_up_marks([mark])
        else:
            units = raised(mark.units.squeeze(0), rank)
            found.append(Mark(units, step.analysis.carried(mark)))
    return [tuple(found)]


@handles("convolution")
def _convolution(step: Step) -> list[Value]:
    value, weight = step.args["input"], step.args["weight"]
    space = "xyz"[: len(shape_of(weight)) - 2]
    batch = "n" if len(shape_of(value)) == len(space) + 2 else ""
    if any(
        axis >= len(shape_of(item)) - len(space)
        for item in (value, weight)
        for mark in step.value(item)
        for axis in mark.axes()
    ):
        return step.give_up()
    filters = "io" if step.args["transposed"] else "oi"
    # positions are summed over in both: the axes of space carry no units, whatever their size
    kernel = space.upper()
    groups = int(step.args["groups"])
    if groups == 1:
        pattern = (f"{batch}i{space}", f"{filters}{kernel}", f"{batch}o{space}")
        product = step.contract(value, weight, pattern)
    else:
        pattern = (f"{batch}gi{space}", f"g{filters}{kernel}", f"{batch}go{space}")
        product = _in_groups(step, pattern, groups)
    bias = step.args.get("bias")
    if bias is None:
        return [product]
    return [_with_bias(step, product, bias, len(batch))]


def _in_groups(step: Step, pattern: tuple[str, str, str], groups: int) -> Value:
    """A product for each group of channels: their axis is split, and joined again."""
    operands = ((step.args["input"], pattern[0].index("g")), (step.args["weight"], 0))
    parts: list[tuple[Value, tuple[int, ...]]] = []
    for item, axis in operands:
        before = shape_of(item)
        after = (*before[:axis], groups, before[axis] // groups, *before[axis + 1 :])
        parts.append((_reshaped(step.value(item), before, after), after))
    after = step.shape
    axis = pattern[2].index("g")
    split = (*after[:axis], groups, after[axis] // groups, *after[axis + 1 :])
    return _reshaped(step.contract_values(parts[0], parts[1], pattern), split, after)


def _reshaped(value: Value, before: tuple[int, ...], after: tuple[int, ...]) -> Value:
    moved = (mark.moved(lambda units: reshaped(units, before, after)) for mark in value)
    return tuple(mark for mark in moved if mark is not None)


def _with_bias(step: Step, product: Value, bias: fx.Node, axis: int) -> Value:
    """A product to which a number for each channel is added."""
    shape = [1] * len(step.shape)
    added = []
    for mark in step.value(bias):
        shape[axis] = mark.units.shape[0]
        added.append(replace(mark, units=mark.units.reshape(shape)))
    found = tuple(
        Mark(units, step.analysis.joined(mark, other))
        for mark, other, units in step.pairs(product, tuple(added))
    )
    for marks, others in ((product, added), (added, product)):
        step.give_up_marks(
            [m for m in marks if not any(overlap(m.units, other.units) for other in others)]
        )
    return found
