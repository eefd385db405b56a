"""The weights of a reference: a module, a state dict or a file, under the names of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.ignoring import check_patterns, checked_patterns, fits, ignored_names
from fxrebasin.models.checks import (
    Remedy,
    StateMismatchError,
    check_finite,
    check_usable,
    ignoring,
    mismatch,
    unwrap,
)
from fxrebasin.sharding import whole
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
    label = str(ref) if isinstance(ref, str | PathLike) else label
    try:
        reading = reading or Reading()
        found = _with_ties(_read_for(ref, model, label, reading), model, reading.ignore)
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        ignored = ignored_in(model, reading.ignore)
        state = {name: whole(tensor) for name, tensor in found.state.items()}
        compared = {name: tensor for name, tensor in state.items() if name not in ignored}
        check_finite(
            {name: tensor for name, tensor in compared.items() if name in parameters},
            {name: tensor for name, tensor in compared.items() if name not in parameters},
        )
    except InputError as error:
        raise InputError(f"{label} cannot be used: {error}") from error
    return ReferenceWeights(state, found.notes)


def patterns_that_fit(
    ignore: Sequence[str], model: nn.Module, refs: Sequence[Any]
) -> tuple[str, ...]:
    """Patterns of tensors that are not compared, each of which fits a tensor somewhere.

    Args:
        ignore: of the caller.
        model: the unwrapped model.
        refs: what it is compared with: modules, mappings or paths.

    Raises:
        InputError: a pattern fits no tensor, of which the nearest is named.
        CheckpointError: a file cannot be read.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> patterns_that_fit(["head.*"], net, [{**net.state_dict(), "head.bias": net.bias}])
        ('head.*',)
    """
    patterns = checked_patterns(ignore)
    own = list(_only_tensors(model.state_dict()))
    strays = [pattern for pattern in patterns if not any(fits(name, [pattern]) for name in own)]
    if strays:
        names = [name for ref in refs for name in _names(ref, model)]
        check_patterns(strays, own, [end for name in names for end in _ends(name)])
    return patterns


def names_beyond(ref: Any, model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of tensors of a reference that are ignored, and that the model does not have.

    Args:
        ref: a module, a mapping or a path.
        model: the unwrapped model.
        patterns: from `patterns_that_fit`.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if not patterns:
        return []
    own = set(_only_tensors(model.state_dict()))
    return [
        name
        for name in _names(ref, model)
        if any(fits(end, patterns) for end in _ends(name)) and own.isdisjoint(_ends(name))
    ]


def _ends(name: str) -> list[str]:
    """A name without each of the prefixes that wrappers may have put before it."""
    return [name, *(name[k + 1 :] for k, sign in enumerate(name) if sign == ".")]


def ignored_in(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of a model's tensors that are not compared, in the model's order.

    Args:
        model: the unwrapped model.
        patterns: from `patterns_that_fit`.
    """
    own = _only_tensors(model.state_dict(keep_vars=True))
    ignored = ignored_names(own, patterns)
    return tuple(name for name in own if name in ignored)


def _names(ref: Any, model: nn.Module) -> list[str]:
    """The names of the tensors in a reference that the model may not have."""
    if isinstance(ref, str | PathLike):
        return list(read_checkpoint(ref, model, Reading(ignore=("*",))).extra)
    if isinstance(ref, Mapping):
        return list(_checked(ref))
    return list(_only_tensors(unwrap(ref).state_dict()))


def _with_ties(
    found: ReferenceWeights, model: nn.Module, patterns: Sequence[str]
) -> ReferenceWeights:
    """The same, where tensors that are ignored under some of their names are those compared."""
    own = _only_tensors(model.state_dict(keep_vars=True))
    ignored = ignored_in(model, patterns)
    compared = {id(own[n]): n for n in own if n in found.state and not fits(n, patterns)}
    both = {
        name: compared[id(tensor)]
        for name, tensor in own.items()
        if name not in ignored and fits(name, patterns)
    }
    notes = [
        f"{name} was not ignored: in the model it is one tensor with {other}, which is compared."
        for name, other in both.items()
    ]
    state = {**found.state, **{name: found.state[other] for name, other in both.items()}}
    return replace(found, state=state, notes=(*found.notes, *notes))


def _read_for(ref: Any, model: nn.Module, label: str, reading: Reading) -> ReferenceWeights:
    """Read a reference; an error proposes to ignore what nothing but the reference has."""
    try:
        return _read(ref, model, label, reading)
    except StateMismatchError as error:
        if error.remedy != Remedy("ignore_extra"):
            raise
        own = _only_tensors(model.state_dict())
        remedy = ignoring(error.differences, own, reading.ignore)
        names = ("the model", label)
        raise mismatch(error.differences, len(own), names, remedy) from None


def _read(ref: Any, model: nn.Module, label: str, reading: Reading) -> ReferenceWeights:
    if isinstance(ref, str | PathLike):
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
