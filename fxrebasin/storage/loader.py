"""What a model's own `load_state_dict` makes of names, which it may know from older releases.

Modules may take tensors under names that they had once, and do without some that they did not have
yet: BatchNorm without `num_batches_tracked`, weight norm under its old names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fxrebasin.gather import storage_identity
from fxrebasin.running.messages import attempt


@dataclass(frozen=True)
class Loaded:
    """What became of tensors.

    Args:
        names: name in the state that was given, by name in the model.
        missing: names of the model for which there was nothing.
    """

    names: Mapping[str, str]
    missing: frozenset[str]


def loaded(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Loaded | None:
    """Let a copy of a model, without memory, load a state; None if it does not.

    Args:
        model: left as it is.
        state: by the names that the model may know.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> old = {name: t for name, t in norm.state_dict().items() if "num" not in name}
        >>> loaded(norm, old).missing
        frozenset()
    """
    empty = {id(t): _empty(t) for t in (*model.parameters(), *model.buffers())}
    made: dict[str, Loaded] = {}

    def load() -> None:
        twin = copy.deepcopy(model, dict(empty))
        result = twin.load_state_dict(dict(state), strict=False, assign=True)
        found = {_identity(tensor): name for name, tensor in reversed([*state.items()])}
        own = twin.state_dict(keep_vars=True)
        names = {
            name: state_name
            for name, tensor in own.items()
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta
            for state_name in [_name(name, tensor, state, found)]
            if state_name is not None
        }
        made["it"] = Loaded(names, frozenset(result.missing_keys))

    # Hooks of the user's modules may raise anything; then names stay what they are.
    return made["it"] if attempt(load) is None else None


def _name(
    name: str,
    tensor: torch.Tensor,
    state: Mapping[str, torch.Tensor],
    found: Mapping[tuple[object, ...], str],
) -> str | None:
    if name in state and _identity(state[name]) == _identity(tensor):
        return name
    return found.get(_identity(tensor))


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return storage_identity(tensor.detach())


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    meta = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, tensor.requires_grad)
    return meta
