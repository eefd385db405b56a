"""Which tensors are not compared with a reference, because it has others in their place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch

from fxrebasin.errors import InputError


def checked_patterns(ignore: Sequence[str]) -> tuple[str, ...]:
    """Names or patterns of a caller, as a tuple.

    Args:
        ignore: names of tensors, or patterns of names as file names have them.

    Raises:
        InputError: it is a text, or holds something else than texts.

    Example:
        >>> checked_patterns(["fc.*"])
        ('fc.*',)
    """
    given: Any = ignore
    if isinstance(given, str) or not all(isinstance(item, str) for item in given):
        raise InputError(f'ignore is {given!r}; pass a list of names or patterns, such as ["fc.*"]')
    return tuple(given)


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether some pattern fits a name.

    Args:
        name: of a tensor.
        patterns: as file names have them.

    Example:
        >>> fits("fc.weight", ["fc.*"]), fits("layer.fc.weight", ["fc.*"])
        (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(
    patterns: Sequence[str], names: Collection[str], elsewhere: Collection[str] = ()
) -> None:
    """Refuse patterns that fit no tensor, naming what comes nearest.

    Args:
        patterns: from `checked_patterns`.
        names: of the tensors of the model.
        elsewhere: names of tensors that other models have.

    Raises:
        InputError: a pattern fits none of them.

    Example:
        >>> check_patterns(["fc.*"], ["conv.weight", "fc.weight", "fc.bias"])
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*names, *elsewhere)):
            raise InputError(f"ignore: {pattern!r} fits no tensor{_nearest(pattern, names)}")


def ignored_names(state: Mapping[str, torch.Tensor], patterns: Sequence[str]) -> frozenset[str]:
    """The names in a state that are not compared.

    A tensor with several names is ignored if a pattern fits every one of them: under one that does
    not fit it is compared, and it is one tensor.

    Args:
        state: with tied tensors under each of their names, as `state_dict(keep_vars=True)` has
            them.
        patterns: from `checked_patterns`.

    Example:
        >>> tied = torch.zeros(2)
        >>> state = {"embedding": tied, "head": tied, "bias": torch.zeros(2)}
        >>> sorted(ignored_names(state, ["head", "bias"]))
        ['bias']
    """
    compared = {id(tensor) for name, tensor in state.items() if not fits(name, patterns)}
    return frozenset(name for name, tensor in state.items() if id(tensor) not in compared)


def _nearest(pattern: str, names: Collection[str]) -> str:
    """The name, or the pattern of all names under a module, that is most like a pattern."""
    modules = dict.fromkeys(module for name in names for module in _modules(name))
    folders = [f"{module}.*" for module in modules]
    if pattern in modules:
        return f"; the nearest is {f'{pattern}.*'!r}"
    candidates = folders if "*" in pattern and folders else names
    found = get_close_matches(pattern, candidates, n=1, cutoff=0.0)
    return f"; the nearest is {found[0]!r}" if found else ""


def _modules(name: str) -> list[str]:
    """The modules that a tensor lies in, from the outermost."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps))]
