"""The invariants of what rules give back, checked after every rule while tests run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence

import torch

from fxrebasin.errors import TraceError
from fxrebasin.passes.fields.fields import Elements, Field, Labels, Value
from fxrebasin.passes.propagate.propagator import Propagator
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.registry import Rule

Apply = Callable[[Propagator, Rule, Call], list[Value]]


def checked(apply: Apply) -> Apply:
    """`Propagator._apply` with a look at the values that come out.

    It raises an error of the family, for of others the model is thought to be the cause.
    """
    seen: weakref.WeakSet[Labels] = weakref.WeakSet()

    def look(self: Propagator, rule: Rule, call: Call) -> list[Value]:
        values = apply(self, rule, call)
        found = [text for value in values for text in broken(value, seen)]
        found += _shapes(values, call)
        if found:
            text = f"{call.op} gave back a value that is broken: {'; '.join(found)}"
            raise TraceError(text) from AssertionError(text)
        return values

    return look


def broken(value: Value, seen: weakref.WeakSet[Labels] | None = None) -> list[str]:
    """What is wrong with a value, in words.

    Args:
        value: any.
        seen: labels that were looked at before; they do not change.
    """
    found = []
    for item in value.fields:
        found += _broken_shape(item, value.shape)
        if isinstance(item, Elements):
            found += _broken_elements(item)
        elif seen is None or item not in seen:
            wrong = list(_broken_labels(item))
            found += wrong
            if seen is not None and not wrong:
                seen.add(item)
    return found


def _shapes(values: Sequence[Value], call: Call) -> Iterator[str]:
    for value, out in zip(values, call.outputs, strict=True):
        if tuple(value.shape) != tuple(out.shape):
            yield f"a value of shape {value.shape} for a tensor of shape {tuple(out.shape)}"


def _broken_shape(item: Field, shape: Sequence[int]) -> Iterator[str]:
    size = tuple((item.values if isinstance(item, Labels) else item.view).shape)
    fits = len(size) == len(shape)
    if not fits or any(mine not in (1, n) for mine, n in zip(size, shape, strict=True)):
        yield f"a field of shape {size} in a value of shape {tuple(shape)}"
    if not item.axes:
        yield "a field that varies along no axis"


def _broken_labels(item: Labels) -> Iterator[str]:
    values = item.values
    if values.dtype != torch.int64:
        yield f"labels of {values.dtype}"
    if item.axes != tuple(axis for axis, size in enumerate(values.shape) if size > 1):
        yield f"axes {item.axes} of labels of shape {tuple(values.shape)}"
    if item.injective and values.unique().numel() < values.numel():
        yield "labels that are called injective and occur twice"
    if item.rigid != bool((values < 0).all()):
        yield f"labels that are {'' if item.rigid else 'not '}called rigid"
    for axis in item.axes:
        if bool((values == values.narrow(axis, 0, 1)).all()):
            yield f"labels that do not vary along axis {axis}"


def _broken_elements(item: Elements) -> Iterator[str]:
    view = item.view
    strides = zip(view.shape, view.stride(), strict=True)
    if item.axes != tuple(axis for axis, (n, stride) in enumerate(strides) if n > 1 and stride):
        yield f"axes {item.axes} of elements with strides {view.stride()} of {tuple(view.shape)}"
