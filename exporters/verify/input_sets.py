"""The inputs on which two models are compared: the given ones, and further ones like them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from fxrebasin.models.input_names import named_inputs
from fxrebasin.models.redraw import Manner, redrawn
from fxrebasin.models.resizing import resized

_MANY_ELEMENTS = 1 << 20  # of a set of many rows, unless two rows have more
_SMALL_BATCH = 7


@dataclass(frozen=True)
class InputSet:
    """One call of a model.

    Attributes:
        label: what these inputs are, for the report.
        args: positional inputs.
        kwargs: keyword inputs.
        required: False if the set may be left out when the reference cannot process it.
        batch: size of the batch axis; None if there is none.
        manner: how its values were drawn.
    """

    label: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    required: bool = True
    batch: int | None = None
    manner: Manner = Manner.USUAL

    @property
    def rows(self) -> int:
        """How many rows there are; a call without a batch axis is one."""
        return self.batch or 1


def example_set(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InputSet:
    """The example inputs themselves.

    Example:
        >>> example_set((torch.ones(4, 3),), {}).batch
        4
    """
    return InputSet("example", tuple(args), dict(kwargs), batch=batch_size(args, kwargs))


def other_sets(
    example: InputSet, *, any_batch: bool = True, few: bool = False
) -> Iterator[InputSet]:
    """Sets of inputs; the first one that a model takes is worth a run besides the example.

    Example inputs may be special (zeros, a single repeated token), and a function may depend on
    the values or on the number of rows, so a set has other values and another number of rows. The
    first ones differ most from the example. Sets that do not differ from it are left out. Values
    are drawn from a fixed seed, as `fxrebasin.models.redraw` says.

    Args:
        example: the inputs that were given.
        any_batch: False for models that take one batch size only.
        few: three rows will do, or two if the example has three.

    Example:
        >>> [one.label for one in other_sets(example_set((torch.ones(2, 3) / 2,), {}))][:3]
        ['redrawn batch of 3', 'redrawn batch of 3', 'redrawn batch of 4']
    """
    sizes = _other_batches(example.batch, few) if any_batch else []
    tried = [example]
    for batch in [*sizes, example.batch]:
        for manner in (Manner.FREE, Manner.USUAL, Manner.CLOSE):
            one = _drawn(example, batch, seed=1, manner=manner)
            if not any(_same(one, other) for other in tried):
                tried.append(one)
                yield one


def wide_sets(example: InputSet, like: InputSet, rows: int, count: int) -> Iterator[InputSet]:
    """Sets of many rows with values far apart, for a model that may take one of several paths.

    Args:
        example: the inputs that were given.
        like: a set that the model took: these have its batch size if that is the example's.
        rows: of a set; fewer are made where rows are large.
        count: number of sets.

    Example:
        >>> example = example_set((torch.ones(2, 3),), {})
        >>> [one.label for one in wide_sets(example, with_batch(example, 3), 16, 2)]
        ['wide batch of 16 #1', 'wide batch of 16 #2']
    """
    free = like.batch != example.batch
    batch = _at_most(rows, example) if free else example.batch
    for number in range(1, 1 + count):
        manner = Manner.BEYOND if number % 2 else Manner.WIDE
        one = _drawn(example, batch, seed=1 + number, manner=manner)
        yield replace(one, label=f"wide{_of_batch(one, example)} #{number}")


def further_sets(example: InputSet, batch: int | None, manner: Manner) -> Iterator[InputSet]:
    """Sets with other values of one kind, without end.

    Args:
        example: the inputs that were given.
        batch: number of rows; None if the inputs have no such axis.
        manner: how far values may be from the given ones.

    Example:
        >>> sets = further_sets(example_set((torch.ones(2, 3),), {}), 128, Manner.BEYOND)
        >>> next(sets).label, next(sets).label
        ('beyond batch of 128 #1', 'beyond batch of 128 #2')
    """
    for number in itertools.count(1):
        one = _drawn(example, batch, seed=1 + number, manner=manner)
        yield replace(one, label=f"{manner.name.lower()}{_of_batch(one, example)} #{number}")


def first_rows(example: InputSet, rows: int) -> InputSet:
    """The first rows of the example; inputs without a batch axis are kept.

    Example:
        >>> first_rows(example_set((torch.ones(4, 3),), {}), 2).label
        'first 2 rows of example'
    """
    before = example.batch

    def cut(value: Any) -> Any:
        return value[:rows] if before is not None and is_batched(value, before) else value

    args, kwargs = tree_map(cut, (example.args, dict(example.kwargs)))
    label = f"first {'row' if rows == 1 else f'{rows} rows'} of {example.label}"
    return InputSet(label, args, kwargs, required=False, batch=rows)


def with_batch(example: InputSet, batch: int, *, required: bool = False) -> InputSet:
    """Inputs with another batch size: rows of the example, in their order, then redrawn.

    A tensor has a batch axis if its first axis is as long as that of the first tensor that has
    axes; other inputs are kept.
    """
    one = _drawn(example, batch, seed=1, manner=Manner.USUAL)
    return replace(one, label=f"batch of {batch}", required=required)


def with_sizes(
    example: InputSet,
    model: nn.Module,
    axes: Mapping[str, Mapping[int, str]],
    sizes: Mapping[str, int],
    manner: Manner = Manner.USUAL,
) -> InputSet:
    """Inputs with axes of other sizes, redrawn; what is longer repeats what was given.

    Args:
        example: the inputs that were given.
        model: names them; see `fxrebasin.models.input_names`.
        axes: labels of axes, by the name of an input and the place of the axis.
        sizes: by label; others stay.
        manner: how far values may be from the given ones.
    """
    wanted = [
        {axis: sizes[label] for axis, label in axes.get(name, {}).items() if label in sizes}
        for name in named_inputs(model, example.args, example.kwargs)
    ]
    args, kwargs = redrawn(resized(example.args, example.kwargs, wanted), 1, manner)
    label = ", ".join(f"{name} of {size}" for name, size in sizes.items())
    return InputSet(label, args, kwargs, required=False, batch=batch_size(args, kwargs))


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


def _other_batches(batch: int | None, few: bool) -> list[int]:
    """A few rows more or less, then a multiple or a part, since a model may need pairs of rows."""
    if batch is None:
        return []
    if few:
        return [size for size in (3, 2) if size != batch]
    if batch <= _SMALL_BATCH:
        return list(dict.fromkeys((batch + 1, 2 * batch)))
    return [_SMALL_BATCH, batch // 2]


def _at_most(rows: int, example: InputSet) -> int:
    """A number of rows, smaller where rows are large."""
    batch = example.batch or 1
    leaves = tree_leaves((example.args, dict(example.kwargs)))
    row = sum(int(leaf.numel()) // batch for leaf in leaves if is_batched(leaf, batch))
    return max(min(rows, _MANY_ELEMENTS // max(row, 1)), min(batch, 2))


def _drawn(example: InputSet, batch: int | None, *, seed: int, manner: Manner) -> InputSet:
    before = example.batch

    def resize(value: Any) -> Any:
        if batch is None or before is None or batch == before or not is_batched(value, before):
            return value
        return value[torch.arange(batch, device=value.device) * before // batch]

    resized = tree_map(resize, (example.args, dict(example.kwargs)))
    args, kwargs = redrawn(resized, seed, manner)
    one = InputSet("redrawn", args, kwargs, required=False, batch=batch, manner=manner)
    return replace(one, label=f"redrawn{_of_batch(one, example)}")


def _of_batch(one: InputSet, example: InputSet) -> str:
    return "" if one.batch == example.batch else f" batch of {one.batch}"


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
