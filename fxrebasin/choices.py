"""What a user decides about an analysis, beside the model and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fxrebasin.errors import InputError

_LISTED = 20


@dataclass(frozen=True)
class Choices:
    """What counts, once it was checked against a model.

    Args:
        state_buffers: names of buffers that are state, beside those that show it by their use.
    """

    state_buffers: tuple[str, ...] = ()


def choices_for(model: nn.Module, *, state_buffers: Sequence[str] = ()) -> Choices:
    """Check the choices of a caller against a model, before any work.

    Args:
        model: unwrapped.
        state_buffers: names of buffers, or patterns of names as file names have them.

    Raises:
        InputError: a name or pattern fits no buffer.

    Example:
        >>> choices_for(nn.BatchNorm1d(3), state_buffers=["running_*"]).state_buffers
        ('running_mean', 'running_var')
    """
    return Choices(_buffers(model, state_buffers))


def _buffers(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of buffers that some pattern fits, in the order of the model."""
    if isinstance(patterns, str) or not all(isinstance(item, str) for item in patterns):
        raise InputError(
            f"state_buffers is {patterns!r}; pass a list of names or patterns, such as "
            '["*.weight_u"]'
        )
    names = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    fits = {p: {n for n in names if n == p or fnmatchcase(n, p)} for p in patterns}
    unfit = [pattern for pattern, found in fits.items() if not found]
    if unfit:
        shown = [*names[:_LISTED], *([f"and {len(names) - _LISTED} more"] * (len(names) > _LISTED))]
        raise InputError(
            f"state_buffers: the model has no buffer {', '.join(map(repr, unfit))}. "
            f"Its buffers are: {', '.join(shown) or 'none'}."
        )
    chosen = set().union(*fits.values())
    return tuple(name for name in names if name in chosen)
