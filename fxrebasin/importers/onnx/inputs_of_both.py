"""Inputs for two graphs that have to compute the same, of which one may have more inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.importers.onnx.finding import drawn_twice, fault_of
from fxrebasin.importers.onnx.inputs import attempts, drawn_inputs
from fxrebasin.importers.onnx.loading import OnnxSource

Inputs: TypeAlias = Mapping[str, Tensor]

_MOST_EXTRA = 2
"""Inputs that only one of the graphs has; each may hold one of several things."""

_Filling: TypeAlias = Callable[[Tensor, int], Tensor]
_FILLINGS: tuple[_Filling, ...] = (
    lambda drawn, _: _counting(drawn),  # positions
    lambda drawn, before: _counting(drawn) + before,  # after what is remembered
    lambda drawn, _: torch.zeros_like(drawn),
    lambda drawn, _: torch.ones_like(drawn),
)


def inputs_of_both(one: OnnxSource, two: OnnxSource) -> Iterator[list[tuple[Inputs, Inputs]]]:
    """Pairs of inputs on which two graphs may be compared: several, or others if these differ.

    Inputs go together by their places. If one of the graphs has more, such as positions that the
    other computes itself, they go together by their names, and what only one of them has holds what
    the other may compute.

    Args:
        one: a model.
        two: another one.

    Raises:
        InputError: none that could be made up are taken by both, or their inputs are others.
    """
    if len(one.parsed.types) == len(two.parsed.types):
        yield [(inputs, inputs) for inputs in _of_equal_places(one, two)]
        return
    turned = len(one.parsed.types) < len(two.parsed.types)
    more, fewer = (two, one) if turned else (one, two)
    extra = _extra(more, fewer)
    for fillings in product(_FILLINGS, repeat=len(extra)):
        pairs = _filled(more, fewer, dict(zip(extra, fillings, strict=True)))
        if pairs:
            yield [pair[::-1] if turned else pair for pair in pairs]


def _of_equal_places(one: OnnxSource, two: OnnxSource) -> list[dict[str, Tensor]]:
    """What one of them says of its own inputs may be enough."""
    modules = [one.module(), two.module()]

    def fault(inputs: Inputs) -> str | None:
        return next((found for m in modules if (found := fault_of(m, inputs)) is not None), None)

    try:
        return drawn_twice(one, fault)
    except InputError:
        return drawn_twice(two, fault)


def _extra(more: OnnxSource, fewer: OnnxSource) -> list[str]:
    """Names of the inputs that only one of two graphs has."""
    lacking = [name for name in fewer.parsed.types if name not in more.parsed.types]
    extra = [name for name in more.parsed.types if name not in fewer.parsed.types]
    if lacking or len(extra) > _MOST_EXTRA:
        raise InputError(
            f"{more.label} alone has the inputs {', '.join(extra)}, and {fewer.label} "
            f"{', '.join(lacking) or 'none of them'}"
        )
    drawn = drawn_inputs(more.parsed)
    unclear = [name for name in extra if drawn[name].is_floating_point() or not drawn[name].dim()]
    if unclear:
        raise InputError(
            f"{more.label} alone has the input {unclear[0]!r}, and what {fewer.label} computes in "
            "its place is not known"
        )
    return extra


def _filled(
    more: OnnxSource, fewer: OnnxSource, fillings: Mapping[str, _Filling]
) -> list[tuple[Inputs, Inputs]]:
    """Inputs in one or two sizes that both graphs take."""
    modules = [more.module(), fewer.module()]
    found: list[tuple[Inputs, Inputs]] = []
    for attempt in attempts(more.parsed):
        drawn = drawn_inputs(more.parsed, attempt)
        own = {
            name: fillings[name](value, _before(name, drawn)) if name in fillings else value
            for name, value in drawn.items()
        }
        pair = own, {name: own[name] for name in fewer.parsed.types}
        if all(fault_of(m, inputs) is None for m, inputs in zip(modules, pair, strict=True)):
            found.append(pair)
        if len(found) == 2:
            break
    return found


def _counting(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], dtype=like.dtype).expand(like.shape).contiguous()


def _before(name: str, drawn: Inputs) -> int:
    """By how much the longest input of whole numbers is longer: what was seen before."""
    lengths: Sequence[int] = [
        value.shape[-1] for value in drawn.values() if value.dim() and not value.is_floating_point()
    ]
    return max(lengths) - drawn[name].shape[-1]
