"""The inputs on which two models are compared: the given ones, and further ones like them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fxrebasin.redraw import redrawn


@dataclass(frozen=True)
class InputSet:
    """One call of a model.

    Attributes:
        label: what these inputs are, for the report.
        args: positional inputs.
        kwargs: keyword inputs.
        required: False if the set may be left out when the reference cannot process it.
    """

    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    required: bool = True


def example_sets(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[InputSet]:
    """The example inputs, and one redrawn set of the same shapes that may be left out.

    Example inputs may be special (zeros, a single repeated token), so one more set is drawn from a
    generator with a fixed seed, as `fxrebasin.redraw` says. Nothing is added where that changes
    nothing.

    Example:
        >>> [one.label for one in example_sets((torch.ones(2, 3),), {})]
        ['example', 'redrawn']
    """
    example = InputSet("example", args, kwargs)
    redrawn = _redrawn("redrawn", args, kwargs, seed=1)
    return [example] if _same(example, redrawn) else [example, redrawn]


def batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Size of the first axis of the first tensor that has axes; None if there is none, or it is 0.

    Example:
        >>> batch_size((torch.ones(4, 3),), {})
        4
    """
    for leaf in tree_leaves((args, dict(kwargs))):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0]) or None
    return None


def is_batched(value: Any, batch: int) -> bool:
    """Whether `value` is a tensor whose first axis has the size of the batch."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch


def with_batch(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int, *, required: bool
) -> InputSet:
    """Inputs with another batch size: rows of the example repeated in turn, then redrawn.

    A tensor has a batch axis if its first axis is as long as that of the first tensor that has
    axes; other inputs are kept.
    """
    before = batch_size(args, kwargs)

    def resize(value: Any) -> Any:
        if before is None or not is_batched(value, before):
            return value
        return value[torch.arange(batch, device=value.device) % before]

    resized = tree_map(resize, (args, dict(kwargs)))
    drawn = _redrawn(f"batch {batch}", *resized, seed=2)
    return InputSet(drawn.label, drawn.args, drawn.kwargs, required)


def _redrawn(label: str, args: Any, kwargs: Any, *, seed: int) -> InputSet:
    args, kwargs = redrawn((args, dict(kwargs)), seed)
    return InputSet(label, args, kwargs, required=False)


def _same(left: InputSet, right: InputSet) -> bool:
    return all(torch.equal(a, b) for a, b in _tensor_pairs(left, right))


def same_start(left: InputSet, right: InputSet) -> bool:
    """Whether the first rows of all tensors are equal in two calls of the same structure."""
    return all(
        torch.equal(a[:1], b[:1]) if a.dim() and b.dim() else torch.equal(a, b)
        for a, b in _tensor_pairs(left, right)
    )


def _tensor_pairs(left: InputSet, right: InputSet) -> list[tuple[torch.Tensor, torch.Tensor]]:
    leaves = zip(
        tree_leaves((left.args, dict(left.kwargs))),
        tree_leaves((right.args, dict(right.kwargs))),
        strict=True,
    )
    return [(a, b) for a, b in leaves if isinstance(a, torch.Tensor)]
