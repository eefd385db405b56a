"""The outputs of a model: every tensor that its caller can get at, by name.

Analysis, tracing, comparison and export all go by this definition. An output is

- a tensor that can be reached from what `forward` returned: in tuples, lists, mappings, sets, and
  through the attributes and slots of any other object (those of its instance, never properties);
- a tensor that was passed in and written to, or that was put into a container or an object that
  was passed in; its name starts with `inputs.`, then its position or keyword.

One thing that a model returns does not count: a cache of keys and values, by which the next call
goes on from this one (see `is_cache`). It is an output only if it is asked for by name.

What cannot be looked into (an iterator, a function or module that would compute with tensors later,
a numpy array, an object of an extension that may hold anything) is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.running.contents import Output, Walk
from fxrebasin.running.given import Given
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.running.refusals import refusal
from fxrebasin.wording import listed, spoken

Wanted: TypeAlias = tuple[str, ...] | Callable[[Any], Any] | None
"""Which outputs count: those of these names or patterns, those in what a function makes of what
the model returned, or all but caches."""

Outputs: TypeAlias = Iterable[str] | Callable[[Any], Any] | None
"""The same, as public functions take it."""

REDUCED_KEY = "fxrebasin.reduced"
"""In the `meta` of a graph that returns what a function made of the outputs of its model."""

LISTED = 20
"""How many outputs a message names."""

_SET_MEMBER = re.compile(r"\{\d+\}")


class ReducingError(InputError):
    """The function that says which outputs count raises on what the model returned."""


def counted(
    returned: Any, wanted: Wanted = None, given: Given | None = None, *, strict: bool = True
) -> dict[str, torch.Tensor]:
    """The outputs that count, by name, in the order in which they are found.

    Args:
        returned: what a model returned, after `reduced`.
        wanted: names or patterns; what a function chose has been chosen by `reduced`.
        given: the inputs of that call, made before it.
        strict: refuse names that fit no output.

    Raises:
        InputError: a name fits no output, or something returned cannot be looked into.

    Example:
        >>> list(counted({"logits": torch.ones(1), "states": (torch.ones(1), None)}))
        ['logits', 'states.0']
        >>> list(counted({"logits": torch.ones(1), "states": (torch.ones(1), None)}, ("lo*",)))
        ['logits']
    """
    walk = Walk(refusal)
    walk.visit(returned, ())
    written = [] if given is None or callable(wanted) else given.written()
    found = named_once([*walk.found, *written])
    if isinstance(wanted, tuple):
        if strict:
            _check_known(found, wanted)
        return {item.name: item.tensor for item in chosen_by(found, wanted)}
    if walk.refused:
        place, why = walk.refused[0]
        raise InputError(
            f"the model's output {place} cannot be looked into: {why}. It may not "
            "change either: let forward return tensors, or say which outputs count, with "
            f"{spoken('outputs=', '--outputs')}"
        )
    return {item.name: item.tensor for item in found if not item.cache}


def reduced(model: nn.Module, returned: Any, wanted: Wanted) -> Any:
    """What the function of the user makes of what a model returned; without one, the same.

    To be called where the model was called, for the function may compute.

    Args:
        model: that returned it; a graph that was traced with the function has done so itself.
        returned: what the model returned.
        wanted: which outputs count.

    Raises:
        ReducingError: the function raises; perhaps because it cannot take meta tensors.
    """
    if not callable(wanted) or getattr(model, "meta", {}).get(REDUCED_KEY):
        return returned
    made: list[Any] = []
    error = attempt(lambda: made.append(wanted(returned)))
    if error is not None:
        raise ReducingError(
            f"the function outputs= raised {first_lines(error)} on the {type(returned).__name__} "
            "that the model returned"
        ) from error
    return made[0]


def counts_when_put(value: Any, name: str, wanted: Wanted, *, cache: bool = False) -> bool:
    """Whether what was put into an input holds an output that counts.

    Args:
        value: what was put there.
        name: of its place, as outputs are called.
        wanted: which outputs count; a function sees what the model returned, and nothing else.
        cache: whether the place is in a cache.

    Example:
        >>> counts_when_put([torch.ones(2)], "inputs.1.states", ("inputs.1.states.0",))
        True
    """
    if callable(wanted):
        return False
    walk = Walk()
    walk.visit(value, (name,), cache)
    if wanted is None:
        return any(not item.cache for item in walk.found)
    return bool(chosen_by(walk.found, wanted))


def _check_known(found: Sequence[Output], patterns: tuple[str, ...]) -> None:
    unfit = [pattern for pattern in patterns if not any(_fits(item, pattern) for item in found)]
    if unfit:
        raise InputError(
            f"outputs: the model has no output {', '.join(map(repr, unfit))}. "
            f"Its outputs are: {listed([item.name for item in found], LISTED) or 'none'}."
        )


def chosen_by(found: Sequence[Output], patterns: tuple[str, ...]) -> list[Output]:
    """The outputs that some pattern fits; members of a set, which has no order, all or none."""
    wanted = {
        _SET_MEMBER.sub("{}", item.name)
        for item in found
        if any(_fits(item, pattern) for pattern in patterns)
    }
    return [item for item in found if _SET_MEMBER.sub("{}", item.name) in wanted]


def _fits(item: Output, pattern: str) -> bool:
    return item.name == pattern or fnmatchcase(item.name, pattern)


def named_once(found: Sequence[Output]) -> list[Output]:
    """The outputs with names that are all different."""
    used: set[str] = set()
    numbers: Counter[str] = Counter()
    result = []
    for item in found:
        name = item.name
        while name in used:
            numbers[item.name] += 1
            name = f"{item.name}_{numbers[item.name]}"
        used.add(name)
        result.append(Output(name, item.tensor, item.cache))
    return result
