"""Which of several models gives the tensors in which they differ, such as their heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.merge.states import own_state
from fxrebasin.running.batches import State
from fxrebasin.wording import listed

IgnoredFrom: TypeAlias = int | Literal["first"]
"""The index of the model that gives ignored tensors; "first" is the one that gives the class."""

_LISTED = 5


def giver_of(
    model: nn.Module,
    names: Sequence[str],
    states: Callable[[int], State],
    candidates: Sequence[int],
    asked: IgnoredFrom,
    count: int,
) -> int:
    """The index of the model from which ignored tensors are taken.

    Args:
        model: gives the class of the result, whose tensors these have to be.
        names: of the ignored tensors.
        states: from an index to the weights of that model.
        candidates: indices of the models that may give them where none is asked for.
        asked: by the caller.
        count: number of models.

    Raises:
        InputError: there is no such model, or the tensors that it has are not of the model's
            shapes.
    """
    if asked != "first":
        if type(asked) is not int or not 0 <= asked < count:
            raise InputError(
                f"ignored_from is {asked!r}; it has to be the index of a model, from 0 to "
                f'{count - 1}, or "first" for the one that gives the class'
            )
        candidates = [asked]
    if not names:
        return candidates[0]
    faults = []
    for index in candidates:
        fault = _fault(model, names, states(index))
        if not fault:
            return index
        faults.append(f"model {index} has {fault}")
    raise InputError(
        "the tensors that are ignored have to be those of the class of the result, but "
        f"{listed(faults, _LISTED, '; ')}. Name a model with such tensors with ignored_from=, or "
        "give the class of another one to the result."
    )


def _fault(model: nn.Module, names: Sequence[str], state: State) -> str:
    """How ignored tensors differ from those of a model; nothing if they do not."""
    own = own_state(model)
    missing = [name for name in names if name not in state]
    other = [n for n in names if n in state and state[n].shape != own[n].shape]
    shapes = [f"{n} of shape {tuple(state[n].shape)}, not {tuple(own[n].shape)}" for n in other]
    return listed([*(f"no {name}" for name in missing), *shapes], _LISTED)
