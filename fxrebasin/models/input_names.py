"""Names for the tensors that go into a model, from the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path


def named_inputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors among the inputs, named as `forward` names its parameters, in order.

    A tensor inside a tuple, list or dict has the place as a suffix: "states.0". Other inputs are
    left out.

    Example:
        >>> list(named_inputs(nn.Bilinear(2, 2, 1), (torch.ones(1, 2),), {"input2": None}))
        ['input1']
    """
    positional = _positional_names(model, len(args))
    leaves, _ = tree_flatten_with_path((tuple(args), dict(kwargs)))
    named: dict[str, torch.Tensor] = {}
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            side, place, *inner = map(_key, path)
            name = str(place) if side else positional[place]
            named[".".join([name, *map(str, inner)])] = leaf
    return named


def _key(entry: Any) -> Any:
    """The index, key or attribute name in one step of a pytree path."""
    for attribute in ("idx", "key", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _positional_names(model: nn.Module, count: int) -> list[str]:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a forward written in C has no signature
        return [f"input.{index}" for index in range(count)]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "input")
    names += [f"{rest}.{index}" for index in range(count - len(names))]
    return names[:count]
