"""Inputs like given ones: of the same shapes and kinds, with other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

import torch
from torch.utils._pytree import tree_map


class Manner(Enum):
    """How far redrawn values may be from the given ones.

    BEYOND: every row of a floating-point tensor has a centre of its own, anywhere up to the largest
    absolute value and of either sign, and values around it; the rest as for FREE. For models that
    take one of several ways: rows are to fall on both sides of a threshold.
    FAR: the same three times as far, for units that inputs close to the given ones do not show.
    WIDE: the same within the range of the values, for models that are not defined outside.
    FREE: floating-point tensors hold independent normal values, integers are in another order, and
    masks and flags change as well.
    USUAL: as FREE, but integers change places within their row only, so that a row keeps its
    special tokens, and masks and flags stay.
    CLOSE: floating-point rows are mixtures of given rows, in equal shares in all tensors, so that
    what holds for every row (corners of boxes in order, shares with the sum 1) holds for the new
    ones; whole numbers stay. For models that check their inputs.
    """

    BEYOND = auto()
    FAR = auto()
    WIDE = auto()
    FREE = auto()
    USUAL = auto()
    CLOSE = auto()


def redrawn(tree: Any, seed: int, manner: Manner = Manner.USUAL) -> Any:
    """The tensors in a tree with other values, drawn from a generator with a seed.

    Floating-point tensors get values with the mean and standard deviation of the given ones,
    clamped to their range, so that they stay where a model's function is defined; a constant
    tensor gives unclamped values around the constant. Integers are values that were given, thus
    valid identifiers, and where all are the same those from 0 to it; vectors in order (offsets,
    lengths, assignments of rows to graphs) stay in order, and begin and end as they did. Boolean
    tensors and integers that are 0 or 1 are masks or flags: where they change, the first and the
    last column of a matrix stay, rows with one mark have one again, and none becomes all false or
    all true. Tensors with values that are not finite (additive masks) are as they are.

    Args:
        tree: tensors anywhere in tuples, lists and dicts; the rest stays.
        seed: the same seed gives the same values.
        manner: how far values may be from the given ones.

    Example:
        >>> sorted(redrawn([torch.tensor([3, 1, 2])], seed=0)[0].tolist())
        [1, 2, 3]
    """
    draw = _DRAWS[manner]
    generator = torch.Generator().manual_seed(seed)

    def redraw(value: Any) -> Any:
        return draw(value.detach(), generator) if isinstance(value, torch.Tensor) else value

    return tree_map(redraw, tree)


def _beyond(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _any_dtype(tensor, generator, _far, _shuffled, _other_flags)


def _farther(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _any_dtype(tensor, generator, _three_times_as_far, _shuffled, _other_flags)


def _wide(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _any_dtype(tensor, generator, _spread, _shuffled, _other_flags)


def _free(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _any_dtype(tensor, generator, _normal, _shuffled, _other_flags)


def _usual(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _any_dtype(tensor, generator, _normal, _shuffled_in_rows, _kept)


def _close(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    # A generator that has been used draws other shares for the next tensor; rows belong together.
    again = torch.Generator().manual_seed(generator.initial_seed())
    return _any_dtype(tensor, again, _mixed, _kept, _kept)


_Draw = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
_DRAWS: Mapping[Manner, _Draw] = {
    Manner.BEYOND: _beyond,
    Manner.FAR: _farther,
    Manner.WIDE: _wide,
    Manner.FREE: _free,
    Manner.USUAL: _usual,
    Manner.CLOSE: _close,
}


def _any_dtype(
    tensor: torch.Tensor, generator: torch.Generator, real: _Draw, whole: _Draw, flags: _Draw
) -> torch.Tensor:
    """Draw by the kind of a tensor: complex and real numbers, whole ones, masks and flags."""
    if not tensor.numel():
        return tensor
    if tensor.is_complex():
        parts = torch.view_as_real(tensor.resolve_conj())
        drawn = _any_dtype(parts, generator, real, whole, flags)
        return torch.view_as_complex(drawn.contiguous())
    if tensor.is_floating_point():
        values = tensor.double().cpu()
        finite = bool(torch.isfinite(values).all())
        return real(values, generator).to(tensor) if finite else tensor
    return (flags if _are_flags(tensor) else whole)(tensor.cpu(), generator).to(tensor.device)


def _are_flags(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def _kept(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return tensor


def _normal(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    low, high, mean = values.min(), values.max(), values.mean()
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    if low == high:
        return mean + noise * mean.abs().clamp(min=1)
    return (mean + noise * values.std()).clamp(low, high)


def _far(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    size = values.abs().max()
    size = size if size > 0 else torch.ones_like(size)
    return _around_centres(values, -size, size, generator)


def _three_times_as_far(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return _far(3 * values, generator)


def _spread(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    low, high = values.min(), values.max()
    return _around_centres(values, low, high, generator).clamp(low, high)


def _around_centres(
    values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Normal values around a centre for every row, and one for all, between two bounds."""
    rows = (values.shape[0], *[1] * (values.dim() - 1)) if values.dim() else ()
    shares = torch.rand(rows, generator=generator, dtype=values.dtype)
    shift = torch.rand((), generator=generator, dtype=torch.float32)
    centres = low + (high - low) * (shares + shift) / 2
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return centres + noise * (high - low) / 4


def _mixed(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = values.shape[0] if values.dim() else 1
    if torch.equal(values, values.round()):
        return values
    shares = 0.6 + 0.4 * torch.rand(rows, generator=generator, dtype=values.dtype)
    if rows == 1:
        return values * shares.view([1] * values.dim())
    shares = shares.view(rows, *[1] * (values.dim() - 1))
    return values * shares + values.roll(1, 0) * (1 - shares)


def _shuffled(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if bool((tensor == tensor.flatten()[0]).all()):
        return _up_to(int(tensor.flatten()[0]), tensor, generator)
    if _in_order(tensor):
        return _other_in_order(tensor, generator)
    order = torch.randperm(tensor.numel(), generator=generator)
    return tensor.flatten()[order].reshape(tensor.shape)


def _up_to(value: int, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Numbers below an identifier, or below the number of a step, are such numbers as well."""
    if value <= 0:
        return tensor
    return torch.randint(value + 1, tensor.shape, generator=generator).to(tensor)


def _shuffled_in_rows(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.dim() < 2 or tensor.shape[-1] < 2:
        return _shuffled(tensor, generator)
    order = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).argsort(-1)
    return tensor.gather(-1, order)


def _in_order(tensor: torch.Tensor) -> bool:
    if tensor.dim() != 1:
        return False
    steps = tensor.long().diff()
    return bool((steps >= 0).all() or (steps <= 0).all())


def _other_in_order(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Given values, some of them several times, in the same order from the same first to last."""
    inner = torch.randint(tensor.numel(), (tensor.numel() - 2,), generator=generator)
    ends = torch.tensor([0, tensor.numel() - 1])
    return tensor[torch.cat([ends, inner]).sort().values]


def _other_flags(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1).bool()
    return _other_marks(rows, tensor.dim() > 1, generator).reshape(tensor.shape).to(tensor)


def _other_marks(marks: torch.Tensor, keep_ends: bool, generator: torch.Generator) -> torch.Tensor:
    """Other marks, of shape [rows, columns]."""
    rows, columns = marks.shape
    if columns > 1 and bool((marks.sum(1) == 1).all()):
        order = torch.randint(columns, (rows, 1), generator=generator)
        return torch.zeros_like(marks).scatter(1, order, True)
    drawn = torch.rand(marks.shape, generator=generator, dtype=torch.float32) < 0.5
    if columns == 1:
        return drawn
    if keep_ends:
        drawn[:, 0], drawn[:, -1] = marks[:, 0], marks[:, -1]
    vanished = (~drawn.any(1) & marks.any(1)) | (drawn.all(1) & ~marks.all(1))
    return torch.where(vanished[:, None], marks, drawn)
