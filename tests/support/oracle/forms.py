"""Other forms of a sample's call: what its schema also takes, beyond what somebody thought of.

Axes counted from the end, no axes and all of them, arguments left out, flags turned over, other
numbers; operands of size 1 along an axis, without axes, without elements, expanded, transposed.
What the operator itself refuses is no form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tests.support.oracle.sample import Operand, Sample
from tests.support.oracle.trial import Trial, analysed, described, incorrect

_DRAWS = 8
_NUMBERS = (0, 1, 2, -1)
_KINDS = ("dtype", "layout", "device", "memory_format", "pin_memory", "generator")
_MODES = ("amax", "amin", "mean", "prod", "sum", "add", "multiply", "trunc", "floor", "none")
_UNCHECKED = (
    "_reshape_alias",
    "batch_norm",
    "group_norm",
    "index_reduce",
    "_weight_norm",
    "_scaled_dot_product",
    "_fft_",
    "_grouped_mm",
    "median.dim",
    "_backward",
)
"""Parts of names of operators that believe what they are told of shapes and strides: with others
they crash, hang, read memory that is not theirs, or give other indices for each row (the median of
an expanded tensor)."""


def forms(sample: Sample) -> list[Sample]:
    """All other forms of the call of one operator that it accepts."""
    if any(part in str(sample.overload) for part in _UNCHECKED):
        return []
    candidates = chain(_other_arguments(sample), _other_operands(sample))
    return [form for form in candidates if _runs(form)]


def form_faults(form: Sample) -> list[str]:
    """What is wrong with what the analysis says of a form; freedoms are not looked for."""
    found = []
    for plain in (False, True):
        trial = Trial(form, plain)
        symmetry = analysed(trial)
        wrong = incorrect(trial, symmetry)
        found += [f"incorrect: {text}; {described(symmetry)}" for text in wrong]
    return found


def _runs(form: Sample) -> bool:
    """Whether the real operator accepts a form, whatever is drawn, with the same result twice."""
    try:
        trial, generator = Trial(form), torch.Generator().manual_seed(5)
        for _ in range(_DRAWS):
            state = trial.draw(generator)
            first, second = trial.result(state), trial.result(state)
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
        return False
    return first == second and math.isfinite(first[1])


# Arguments ------------------------------------------------------------------------------------


def _other_arguments(sample: Sample) -> Iterator[Sample]:
    if sample.overload is None:
        return
    ndim = max((len(item.shape) for item in sample.operands.values()), default=0)
    for index, argument in enumerate(sample.overload._schema.arguments):
        if argument.name in _KINDS:  # numbers stand for them, and some of those crash
            continue
        given = sample.args[index] if index < len(sample.args) else None
        given = sample.kwargs.get(argument.name, given)
        for value in _alternatives(str(argument.type), str(argument.name), given, ndim):
            named = f"{sample.name} {argument.name}={value}"
            if index < len(sample.args):
                args = (*sample.args[:index], value, *sample.args[index + 1 :])
                yield replace(sample, name=named, args=args)
            elif argument.kwarg_only or len(sample.args) <= index:
                yield replace(sample, name=named, kwargs={**sample.kwargs, argument.name: value})


def _alternatives(kind: str, name: str, given: Any, ndim: int) -> Iterator[Any]:
    """Other values of an argument, by its type.

    Args:
        kind: the type, as the schema writes it.
        name: of the argument.
        given: what the sample passes, None if nothing.
        ndim: how many axes the sample's operands have.
    """
    if kind.startswith("Optional") and given is not None:
        yield None
    if "List[int]" in kind or "List[SymInt]" in kind:
        yield from _lists(given, ndim)
    elif "Tensor" in kind or "List" in kind:
        return
    elif "bool" in kind:
        yield from (item for item in (True, False) if item is not given)
    elif "str" in kind:
        yield from (mode for mode in _MODES if mode != given)
    elif kind in ("int", "SymInt", "Optional[int]", "Optional[SymInt]"):
        numbers = (-1, 0, -ndim, ndim - 1) if "dim" in name else _NUMBERS
        if name == "reduction" or name.endswith("_mode"):  # names stand for these
            numbers = _NUMBERS[:3]
        yield from (number for number in dict.fromkeys(numbers) if number != given)
    elif "number" in kind or "float" in kind:
        yield from (number for number in (*_NUMBERS, 2.5) if number != given)


def _lists(given: Any, ndim: int) -> Iterator[list[int]]:
    found = [[], [0], [-1], list(range(ndim)), [-1, 0], [1, 1], [2]]
    if isinstance(given, Sequence) and given:
        found += [[number - ndim for number in given], list(reversed(given))]
        found += [[-number for number in given], [number + 1 for number in given]]
    yield from (item for item in found if item != given)


# Operands -------------------------------------------------------------------------------------


def _other_operands(sample: Sample) -> Iterator[Sample]:
    for name, operand in sample.operands.items():
        for words, other in _other_shapes(operand):
            yield _with_operand(sample, name, other, f"{sample.name} {name} {words}")
    longest = max((len(item.shape) for item in sample.operands.values()), default=0)
    for axis in range(longest):
        changed = sample
        for name, operand in sample.operands.items():
            if axis < len(operand.shape):
                changed = _with_operand(changed, name, _resized(operand, axis, 1), sample.name)
        yield replace(changed, name=f"{sample.name} size 1 along {axis}")


def _other_shapes(operand: Operand) -> Iterator[tuple[str, Operand]]:
    shape = operand.shape
    yield "without axes", replace(operand, shape=())
    for axis, size in enumerate(shape):
        if size > 1:
            one = _resized(operand, axis, 1)
            yield f"size 1 along {axis}", one
            yield f"expanded along {axis}", replace(one, seen_as=shape)
        yield f"empty along {axis}", _resized(operand, axis, 0)
    if len(shape) > 1:
        yield "transposed", replace(operand, shape=shape[::-1], transposed=True)


def _resized(operand: Operand, axis: int, size: int) -> Operand:
    return replace(operand, shape=(*operand.shape[:axis], size, *operand.shape[axis + 1 :]))


def _with_operand(sample: Sample, name: str, operand: Operand, named: str) -> Sample:
    leaves, tree = pytree.tree_flatten((sample.args, dict(sample.kwargs)))
    names = iter(sample.operands)
    changed = [
        operand if isinstance(leaf, Operand) and next(names) == name else leaf for leaf in leaves
    ]
    args, kwargs = pytree.tree_unflatten(changed, tree)
    return replace(sample, name=named, args=args, kwargs=kwargs)
