"""How close two models are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from fxrebasin.errors import InputError
from fxrebasin.permutation import Permutation
from fxrebasin.sharding import is_sharded
from fxrebasin.solvers.pairs import blocks_of_both, inner, view_of_reals

_AT_ONCE = 1 << 28  # bytes that are permuted


@dataclass(frozen=True)
class Closeness:
    """Of two models, over the tensors that are compared.

    Args:
        objective: sum of the inner products.
        distance: Euclidean distance.
    """

    objective: float
    distance: float


def closeness(
    names: Collection[str],
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
    permutation: Permutation | None = None,
) -> Closeness:
    """Inner product and distance of the reference and the (permuted) model.

    One tensor is permuted at a time, a large one some rows at a time if none of its rows moves, and
    long sums are in float64.

    Args:
        names: of the tensors that are compared.
        state_a: tensors of the reference.
        state_b: tensors of the model.
        permutation: of the model; as it is when left out.

    Raises:
        InputError: a tensor holds values that are not finite, or too large to compare.
    """
    product = square = 0.0
    for name in names:
        for a, moved in _moved(name, state_a[name], state_b[name], permutation):
            found = closeness_of(name, a, moved)
            product, square = product + found[0], square + found[1]
    return Closeness(product, square**0.5)


def _moved(
    name: str, a: torch.Tensor, b: torch.Tensor, permutation: Permutation | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Two tensors, the second permuted, or rows of them: of a table there is no room for a copy."""
    if permutation is None or name not in permutation.layout:
        yield a, b
        return
    rows_move = any(0 in group.axes for group in permutation.layout[name])
    if b.nbytes <= _AT_ONCE or rows_move or is_sharded(a) or is_sharded(b):
        yield a, permutation.permute_tensor(name, b)
        return
    rows = max(_AT_ONCE * len(b) // b.nbytes, 1)
    for one, other in zip(a.split(rows), b.split(rows), strict=True):
        yield one, permutation.permute_tensor(name, other)


def closeness_of(name: str, a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Inner product and squared distance of two tensors, of which a block at a time is widened.

    Args:
        name: of both, for the message.
        a: floating or complex.
        b: of the same shape.

    Raises:
        InputError: one holds values that are not finite, or too large to compare.
    """
    product = square = 0.0
    one, two = (view_of_reals(side.detach()).reshape(-1) for side in (a, b))
    dtype = torch.float64 if torch.float64 in (one.dtype, two.dtype) else torch.float32
    for x, y in blocks_of_both(one, two):
        x, y = x.to(dtype), y.to(x.device, dtype)
        product += inner(x, y)
        difference = x - y
        square += inner(difference, difference)
    if not math.isfinite(product + square):
        sides = {"the reference": one, "the model": two}
        wrong = [label for label, side in sides.items() if not side.to(dtype).isfinite().all()]
        where = f" ({' and '.join(wrong)})" if wrong else ""
        raise InputError(f"{name} holds values that are not finite{where}, or too large to compare")
    return product, square
