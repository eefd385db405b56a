"""The weights of a reference: a module, a state dict or a file, under the names of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.checks import check_finite, check_same_architecture, check_usable, unwrap
from fxrebasin.storage.checkpoint import aligned, fitted, load_state_dict


def reference_state(
    ref: Any, model: nn.Module, label: str = "the reference"
) -> dict[str, torch.Tensor]:
    """The tensors of `ref` by the names and in the order of `model.state_dict()`.

    Nothing is copied: tensors of a module or a mapping are returned themselves, detached. Prefixes
    of wrappers are taken off the names of a mapping or a file where that makes them fit.

    Args:
        ref: a module, a mapping from names to tensors, or the path of a file of weights.
        model: the unwrapped model that is going to be compared with it.
        label: what it is called in a message; a file by its path.

    Raises:
        ArchitectureMismatchError: names, shapes or kinds of dtype differ; all of them are told.
        CheckpointError: the file cannot be read.
        InputError: `ref` is none of these, or has weights that cannot be used (not finite,
            quantised, without values).

    Example:
        >>> net = nn.Linear(2, 1)
        >>> list(reference_state({"module.weight": net.weight, "module.bias": net.bias}, net))
        ['weight', 'bias']
    """
    own = _only_tensors(model.state_dict())
    label = str(ref) if isinstance(ref, str | Path) else label
    try:
        state = fitted(_read(ref, own), model)
        check_same_architecture(own, state, ("the model", label))
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        check_finite(
            {name: tensor for name, tensor in state.items() if name in parameters},
            {name: tensor for name, tensor in state.items() if name not in parameters},
        )
    except InputError as error:
        raise InputError(f"{label} cannot be used: {error}") from error
    return {name: tensor.detach() for name, tensor in state.items()}


def _read(ref: Any, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if isinstance(ref, str | Path):
        return load_state_dict(ref, own)
    if isinstance(ref, Mapping):
        return aligned(_checked(ref), own)
    if not isinstance(ref, nn.Module | torch.jit.ScriptFunction):
        raise InputError(
            f"it is of type {type(ref).__name__}; expected a torch.nn.Module, a state dict, or "
            "the path of a file of weights."
        )
    module = unwrap(ref)
    check_usable(module)
    return _only_tensors(module.state_dict())


def _only_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Without the extra state of modules, which may be anything."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _checked(ref: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    wrong = [key for key, value in ref.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise InputError(
            f"the reference is a mapping with values that are not tensors: {wrong[:5]}. Pass a "
            "state dict: `model.state_dict()`."
        )
    return {str(name): tensor for name, tensor in ref.items()}
