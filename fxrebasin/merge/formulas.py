"""Formulas that make the weights of one model out of those of several, on state dicts.

All compute every tensor by itself, half precision in float32, and round once, to the dtype of the
first state; infinities or NaN that come of that are refused. Tensors that hold no floating or
complex numbers are those of the first state, and so are infinities (in masks) that all states have.
Nothing is modified.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

import torch

from fxrebasin.errors import InputError
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.states import is_number, weighted_mean, wide_dtype
from fxrebasin.running.batches import State

Weights: TypeAlias = Sequence[float] | ByPattern[Sequence[float]]
"""One number per state, everywhere or by patterns of names."""

TIES_DENSITY, DARE_DENSITY = 0.2, 0.1
"""What the papers keep."""


def mean(states: Sequence[State], weights: Weights) -> dict[str, torch.Tensor]:
    """The weighted mean, as of model soups (Wortsman et al. 2022, arXiv:2203.05482).

    Args:
        states: at least one.
        weights: one for each state; divided by their sum.

    Example:
        >>> mean([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [1, 3])["w"]
        tensor([3.])
    """

    return _each(states, partial(mean_of, weights))


def mean_of(weights: Weights, name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weighted mean of one tensor of several models, which are looked at one by one.

    Args:
        weights: one for each model; divided by their sum.
        name: of the tensor.
        tensors: of one shape and dtype.

    Raises:
        InputError: it holds infinities or NaN that come of the mean.

    Example:
        >>> float(mean_of([1, 3], "w", [torch.tensor(0.0), torch.tensor(4.0)]))
        3.0
    """
    own = _weights(weights, name)
    total = sum(own)
    shares = [weight / total for weight in own]
    made = _but_infinite(weighted_mean(tensors, shares, tensors[0]), tensors)
    _refuse_too_large(name, made, tensors)
    return made


def slerp(a: State, b: State, t: float | ByPattern[float]) -> dict[str, torch.Tensor]:
    """A point of the great arc between two models, every tensor as one vector.

    `sin((1−t)ω)/sin(ω)·a + sin(tω)/sin(ω)·b`, with ω the angle between both (Shoemake 1985,
    "Animating rotation with quaternion curves"); the straight line where they are parallel or one
    is zero.

    Args:
        a: the state at t = 0.
        b: the state at t = 1.
        t: the position, everywhere or by patterns of names.

    Example:
        >>> found = slerp({"w": torch.tensor([1.0, 0])}, {"w": torch.tensor([0.0, 1])}, 0.5)
        >>> found["w"]
        tensor([0.7071, 0.7071])
    """

    def formula(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        one, two = tensors
        at = t.of(name) if isinstance(t, ByPattern) else t
        angle = _angle(one, two)
        if math.sin(angle) < 1e-6:
            return torch.lerp(one, two, at)
        shares = (math.sin((1 - at) * angle), math.sin(at * angle))
        return (one * shares[0] + two * shares[1]) / math.sin(angle)

    return _each([a, b], formula)


def task_arithmetic(
    states: Sequence[State], base: State, weights: Weights, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    """The base plus differences from it (Ilharco et al. 2022, arXiv:2212.04089).

    `base + scale · Σ weightₖ·(stateₖ − base)`.

    Args:
        states: fine-tuned from the base.
        base: what they have in common.
        weights: one for each state, of any sign and sum; a negative one unlearns.
        scale: λ in the paper.

    Example:
        >>> states = [{"w": torch.tensor([3.0])}, {"w": torch.tensor([0.0])}]
        >>> task_arithmetic(states, {"w": torch.tensor([1.0])}, [1, 1])["w"]
        tensor([2.])
    """

    def formula(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        start, tasks = _tasks(tensors)
        return start + scale * _sum(tasks, _weights(weights, name))

    return _each([*states, base], formula)


def ties(
    states: Sequence[State],
    base: State,
    weights: Weights,
    density: float | ByPattern[float] = TIES_DENSITY,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """TIES (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, mean of those that agree.

    Of every difference from the base the largest entries are kept; each place gets the sign that
    has the larger sum; the weighted mean of the entries of that sign is added to the base. As in
    mergekit and peft entries are ranked inside each tensor (in the paper, over all of them).

    Args:
        states: fine-tuned from the base.
        base: what they have in common.
        weights: one for each state, 0 or above.
        density: the share of entries that is kept, above 0 and up to 1, everywhere or by patterns.
        scale: λ in the paper.

    Example:
        >>> states = [{"w": torch.tensor([4.0, 1, 2])}, {"w": torch.tensor([2.0, -3, 0])}]
        >>> ties(states, {"w": torch.zeros(3)}, [1, 1], density=1)["w"]
        tensor([ 3., -3.,  2.])
    """

    def formula(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        start, tasks = _tasks(tensors)
        own = _weights(weights, name)
        kept = [_largest(task, _value(density, name)) for task in tasks]
        elected = torch.sgn(_sum(kept, own))
        agreeing = [torch.where(torch.sgn(task) == elected, task, 0) for task in kept]
        counted = _sum([(task != 0).to(start.dtype) for task in agreeing], own)
        together = _sum(agreeing, own)
        return start + scale * torch.where(counted != 0, together / counted, 0)

    return _each([*states, base], formula, real=True)


def dare(
    states: Sequence[State],
    base: State,
    weights: Weights,
    density: float | ByPattern[float] = DARE_DENSITY,
    scale: float = 1.0,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """DARE (Yu et al. 2023, arXiv:2311.03099): drop and rescale, then task arithmetic.

    Every entry of a difference from the base is kept with the probability `density`, and what is
    kept is divided by it.

    Args:
        states: fine-tuned from the base.
        base: what they have in common.
        weights: one for each state, of any sign and sum.
        density: 1 − p of the paper, above 0 and up to 1, everywhere or by patterns.
        scale: of the sum.
        seed: of the entries that are dropped: those of a tensor depend on it, on the place of the
            state and on the name, and on nothing else.

    Example:
        >>> states = [{"w": torch.full((100,), 2.0)}]
        >>> dare(states, {"w": torch.zeros(100)}, [1], density=0.5, seed=1)["w"].unique()
        tensor([0., 4.])
    """

    def formula(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        start, tasks = _tasks(tensors)
        share = _value(density, name)
        thinned = [
            torch.where(_drawn(task, share, (seed, k, name)), task / share, 0)
            for k, task in enumerate(tasks)
        ]
        return start + scale * _sum(thinned, _weights(weights, name))

    return _each([*states, base], formula)


def _each(
    states: Sequence[State],
    formula: Callable[[str, Sequence[torch.Tensor]], torch.Tensor],
    *,
    real: bool = False,
) -> dict[str, torch.Tensor]:
    """A formula for every tensor of the first state, on wide copies of all of them."""
    found: dict[str, torch.Tensor] = {}
    for name, first in states[0].items():
        if not is_number(first):
            found[name] = first.detach().clone()
            continue
        wide = wide_dtype(first.dtype)
        tensors = [state[name].detach().to(first.device, wide) for state in states]
        if real and wide.is_complex:
            parts = formula(name, [torch.view_as_real(tensor) for tensor in tensors])
            made = torch.view_as_complex(parts)
        else:
            made = formula(name, tensors)
        found[name] = _but_infinite(made, tensors).to(first.dtype, copy=True)
        _refuse_too_large(name, found[name], tensors)
    return found


def _but_infinite(made: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """What was computed, but the infinity that all tensors have in the same place."""
    if torch.isfinite(made).all():
        return made
    first = tensors[0]
    found = torch.isinf(first)
    for tensor in tensors:
        found &= tensor == first
    return torch.where(found, first, made)


def _refuse_too_large(name: str, made: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse infinities made of finite numbers, and NaN that not all tensors have."""
    made = made.to(wide_dtype(made.dtype))  # few bits have no such questions
    if torch.isfinite(made).all():
        return
    finite, none = ~torch.isnan(made), torch.isnan(made)
    for tensor in tensors:
        finite &= torch.isfinite(tensor)
        none &= torch.isnan(tensor)
    if (torch.isnan(made) & ~none | torch.isinf(made) & finite).any():
        raise InputError(
            f"{name} would hold infinities or NaN that not all models have there: weights or scale "
            "are too large for its dtype, or a model holds such numbers itself"
        )


def _tasks(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The base, which comes last, and the differences from it."""
    *tuned, base = tensors
    return base, [tensor - base for tensor in tuned]


def _sum(tensors: Iterable[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    first, *rest = (tensor * w for tensor, w in zip(tensors, weights, strict=True))
    for tensor in rest:
        first = first + tensor
    return first


def _angle(one: torch.Tensor, two: torch.Tensor) -> float:
    """The angle between two vectors; 0 if one of them is zero."""
    wide = torch.complex128 if one.is_complex() else torch.float64
    a, b = (
        torch.view_as_real(tensor.to(wide)).flatten()
        if one.is_complex()
        else tensor.to(wide).flatten()
        for tensor in (one, two)
    )
    lengths = float(torch.linalg.vector_norm(a)) * float(torch.linalg.vector_norm(b))
    return math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))) if lengths > 0 else 0.0


def _largest(task: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of largest size, at least one; of equal ones the earlier."""
    count = max(1, round(density * task.numel()))
    if count >= task.numel():
        return task
    order = torch.sort(task.abs().flatten(), descending=True, stable=True).indices[:count]
    kept = torch.zeros_like(task).flatten()
    kept[order] = task.flatten()[order]
    return kept.reshape(task.shape)


def _drawn(task: torch.Tensor, share: float, origin: tuple[int, int, str]) -> torch.Tensor:
    """Which entries are kept, from a generator of their own."""
    digest = hashlib.sha256(repr(origin).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(task.shape, generator=generator, dtype=torch.float32).to(task.device) < share


def _weights(weights: Weights, name: str) -> Sequence[float]:
    return weights.of(name) if isinstance(weights, ByPattern) else weights


def _value(value: float | ByPattern[float], name: str) -> float:
    return value.of(name) if isinstance(value, ByPattern) else value
