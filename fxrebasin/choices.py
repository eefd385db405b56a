"""What a user decides about an analysis, beside the model and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.outputs import Outputs, Wanted

_LISTED = 20


@dataclass(frozen=True)
class Choices:
    """What counts, once it was checked against a model.

    Args:
        state_buffers: names of buffers that are state, beside those that show it by their use.
        outputs: which outputs have to stay as they are; see `fxrebasin.outputs`.
    """

    state_buffers: tuple[str, ...] = ()
    outputs: Wanted = None


def choices_for(
    model: nn.Module, *, state_buffers: Sequence[str] = (), outputs: Outputs = None
) -> Choices:
    """Check the choices of a caller against a model, before any work.

    Args:
        model: unwrapped.
        state_buffers: names of buffers, or patterns of names as file names have them.
        outputs: names or patterns of outputs, a function of what the model returns, or None.
            Whether there are such outputs shows when the model is run.

    Raises:
        InputError: a name or pattern fits no buffer, or a choice is of the wrong kind.

    Example:
        >>> choices_for(nn.BatchNorm1d(3), state_buffers=["running_*"]).state_buffers
        ('running_mean', 'running_var')
    """
    return Choices(_buffers(model, state_buffers), _outputs(outputs))


def _outputs(wanted: Any) -> Wanted:
    if wanted is None:
        return None
    if callable(wanted) and not isinstance(wanted, type):
        function: Callable[[Any], Any] = wanted
        return function
    names = isinstance(wanted, Iterable) and not isinstance(wanted, str | Mapping)
    patterns: tuple[Any, ...] = tuple(wanted) if names else ()
    if not patterns or not all(isinstance(item, str) for item in patterns):
        raise InputError(
            f"outputs is {wanted!r}; pass a list of names or patterns as `verify` prints them, "
            'such as ["logits"], a function of what the model returns, or None for all outputs'
        )
    return patterns


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
