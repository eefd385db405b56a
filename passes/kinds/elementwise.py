"""Operators that work element by element on units of a class, and those that are like them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from fxrebasin.passes.kinds.marks import Mark, Value, of_one_copy
from fxrebasin.passes.kinds.walk import Step, handles, name_of, shape_of


@handles("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(step: Step) -> list[Value]:
    return step.stay()


@handles("add", "sub")
def _add(step: Step) -> list[Value]:
    analysis = step.analysis
    one, two = step.args["self"], step.args["other"]
    added_to = _with_offset(step)
    if added_to:
        return [added_to]
    beside = analysis.centred if _is_mean_of(two, one, step) else analysis.beside
    return [step.meet(one, two, analysis.joined, beside)]


def _with_offset(step: Step) -> Value:
    """Parts of parameters to which a number is added; none if it is something else."""
    number, value = step.args["other"], step.value(step.args["self"])
    if isinstance(number, fx.Node) or step.args.get("alpha", 1) != 1:
        return ()
    if not all(_is_trained(mark, step) and step.analysis.offset(mark) for mark in value):
        return ()  # a running variance stays positive on its own
    sign = -1 if name_of(step.node) == "sub" else 1
    return tuple(replace(mark, offset=mark.offset + sign * float(number)) for mark in value)


def _is_trained(mark: Mark, step: Step) -> bool:
    return mark.source is not None and mark.source.state in step.walk.graph.parameters


def _is_mean_of(item: Any, value: Any, step: Step) -> bool:
    """Whether the mean of a tensor, over the axis of its units, is taken off it."""
    if name_of(step.node) != "sub" or not isinstance(item, fx.Node) or item.op != "call_function":
        return False
    source: Any = item
    if name_of(item).endswith("getitem>"):
        if item.args[1] != 1:
            return False
        source = item.all_input_nodes[0]
    if name_of(source) not in ("mean", "var_mean") or source.args[0] is not value:
        return False
    shape = shape_of(source.args[0])
    dims: Any = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim")
    over = {dim % len(shape) for dim in dims} if dims else set(range(len(shape)))
    marks = step.value(value)  # at each place by itself: else only the sum of all is zero
    return all(
        of_one_copy(mark.units, sorted(over), step.analysis.size)
        and all(shape[k] == 1 or k in mark.inner_axes(step.analysis.size) for k in over)
        for mark in marks
    )


@handles("mul")
def _mul(step: Step) -> list[Value]:
    analysis = step.analysis
    one, two = step.args["self"], step.args["other"]
    if not isinstance(two, fx.Node) and two == 1:
        return [step.value(one)]
    return [step.meet(one, two, analysis.multiplied, analysis.carried)]


@handles("div")
def _div(step: Step) -> list[Value]:
    analysis = step.analysis
    if step.value(step.args["other"]) or step.args.get("rounding_mode") is not None:
        return step.stay()
    return [step.meet(step.args["self"], step.args["other"], analysis.multiplied, analysis.carried)]
