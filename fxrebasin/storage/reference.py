"""The weights of a reference: a module, a state dict or a file, under the names of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.checks import check_finite, check_usable, unwrap
from fxrebasin.storage.checkpoint import read_checkpoint
from fxrebasin.storage.finding import find
from fxrebasin.storage.reading import Reading


@dataclass(frozen=True)
class ReferenceWeights:
    """The weights of a reference under the names of a model, and notes on how they were found."""

    state: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()


def reference_state(
    ref: Any, model: nn.Module, label: str = "the reference", reading: Reading | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of `ref` by the names and in the order of `model.state_dict()`.

    Nothing is copied: tensors of a module or a mapping are returned themselves, detached.

    Args:
        ref: a module, a mapping from names to tensors, or the path of a file or folder of weights.
        model: the unwrapped model that is going to be compared with it.
        label: what it is called in a message; a file by its path.
        reading: which copy of the weights is taken; what is ignored may be missing in the result.

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
    return dict(reference_weights(ref, model, label, reading).state)


def reference_weights(
    ref: Any, model: nn.Module, label: str = "the reference", reading: Reading | None = None
) -> ReferenceWeights:
    """As `reference_state`, with notes on which copy was taken and what is beside it.

    Args:
        ref: see `reference_state`.
        model: see `reference_state`.
        label: see `reference_state`.
        reading: see `reference_state`.

    Raises:
        ArchitectureMismatchError: see `reference_state`.
        CheckpointError: see `reference_state`.
        InputError: see `reference_state`.
    """
    label = str(ref) if isinstance(ref, str | Path) else label
    try:
        found = _read(ref, model, label, reading or Reading())
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        check_finite(
            {name: tensor for name, tensor in found.state.items() if name in parameters},
            {name: tensor for name, tensor in found.state.items() if name not in parameters},
        )
    except InputError as error:
        raise InputError(f"{label} cannot be used: {error}") from error
    return ReferenceWeights({n: t.detach() for n, t in found.state.items()}, found.notes)


def _read(ref: Any, model: nn.Module, label: str, reading: Reading) -> ReferenceWeights:
    if isinstance(ref, str | Path):
        checkpoint = read_checkpoint(ref, model, reading)
        return ReferenceWeights(checkpoint.state, checkpoint.notes)
    if isinstance(ref, Mapping):
        found = find(_checked(ref), model, reading, label)
        return ReferenceWeights(found.state, found.notes)
    if not isinstance(ref, nn.Module | torch.jit.ScriptFunction):
        raise InputError(
            f"it is of type {type(ref).__name__}; expected a torch.nn.Module, a state dict, or "
            "the path of a file of weights."
        )
    module = unwrap(ref)
    check_usable(module)
    found = find(_only_tensors(module.state_dict()), model, reading, label)
    return ReferenceWeights(found.state)


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
