"""Weights of several models of one architecture, and new models with a mixture of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.gather import storage_identity
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.passes.trace.graph_state import copy_with_state, named_state, replacements
from fxrebasin.running.batches import State
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.switches import no_warnings
from fxrebasin.storage.reading import Reading
from fxrebasin.storage.reference import ignored_in, reference_state


def usable(model: Any, label: str = "the model") -> nn.Module:
    """The module inside wrappers, once it is known to have weights that can be used.

    What is returned has a structure of its own around the very tensors of the model: a call may
    run it, and change its mode, while other threads use the model.

    Args:
        model: of the caller.
        label: what it is called in a message.

    Raises:
        InputError: it is not a module, or has weights that cannot be used.
    """
    return own_structure(checked(model, label))


def checked(model: Any, label: str) -> nn.Module:
    """The caller's own module inside wrappers, once it is known to have weights that can be used.

    Args:
        model: of the caller.
        label: what it is called in a message.

    Raises:
        InputError: it is not a module, or has weights that cannot be used.
    """
    try:
        module = unwrap(model)
        check_usable(module)
    except InputError as error:
        raise InputError(f"{label} cannot be used: {error}") from error
    return module


def states_of(
    model: nn.Module,
    others: Sequence[Any],
    labels: Sequence[str],
    patterns: Sequence[str] = (),
) -> list[State]:
    """The state of a model, and those of others under its names; nothing is copied.

    Args:
        model: from `usable`.
        others: modules, state dicts, or paths of files of weights.
        labels: what the others are called in a message.
        patterns: of names of tensors that may be missing in the others, or of another shape.

    Raises:
        ArchitectureMismatchError: names, shapes or kinds of dtype differ, or one of the others has
            two tensors where the model has one under two names.
        CheckpointError: a file cannot be read.
        InputError: one of the others cannot be used.
    """
    states: list[State] = [own_state(model)]
    ties, ignored = tied_names(model), ignored_in(model, patterns)
    for other, label in zip(others, labels, strict=True):
        state = reference_state(other, model, label, Reading(ignore=tuple(patterns)))
        _check_ties(state, [names for names in ties if names[0] not in ignored], label)
        states.append(state)
    return states


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, detached, without extra state."""
    state = model.state_dict()
    return {n: t.detach() for n, t in state.items() if isinstance(t, torch.Tensor)}


def tied_names(model: nn.Module) -> list[tuple[str, ...]]:
    """Names in the state dict that are one tensor, for each tensor with several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [tuple(found) for found in names.values() if len(found) > 1]


def mixture(
    model: nn.Module, states: Sequence[State], weights: Sequence[float], nearest: int
) -> nn.Module:
    """A copy of a model with the weighted mean of states.

    Floating and complex tensors are mixed in float32 (float64 and complex128 in their own
    precision) and rounded once, whether they are parameters or buffers. All others are those of
    one state. Tied tensors are tied again, and flags are those of the model. Where all states
    agree, the result is that value, bit for bit.

    Args:
        model: gives class, dtypes, devices, and what is in no state dict; left as it is.
        states: by the names of the model's state dict.
        weights: of the states; their sum is 1, and none of the sums of the largest few is 0.
        nearest: index of the state that integers and booleans are taken from.

    Raises:
        InputError: the model cannot be copied.
    """

    def mixed(name: str, own: torch.Tensor) -> torch.Tensor:
        if name not in states[0]:  # a buffer that is not persistent
            return own.detach().clone()
        if is_number(own):
            return weighted_mean([state[name] for state in states], weights, own)
        return states[nearest][name].detach().to(own, copy=True)

    own = named_state(model)
    made: dict[int, torch.Tensor] = {}
    for name in sorted(own, key=lambda n: n not in states[0]):
        if id(own[name]) not in made:
            made[id(own[name])] = mixed(name, own[name])
    return copy_of(model, {name: made[id(tensor)] for name, tensor in own.items()})


def weighted_mean(
    tensors: Sequence[torch.Tensor], weights: Sequence[float], like: torch.Tensor
) -> torch.Tensor:
    """The mean of tensors, in the dtype and on the device of another; a new tensor.

    Args:
        tensors: floating or complex, of one shape.
        weights: with the sum 1; tensors of weight 0 are not looked at.
        like: has dtype and device.
    """
    # The largest first: all sums on the way are then above 0, also with negative weights.
    order = sorted((k for k, w in enumerate(weights) if w != 0), key=lambda k: -weights[k])
    if len(order) == 1:
        return tensors[order[0]].detach().to(like, copy=True)
    wide = wide_dtype(like.dtype)
    mean, total = tensors[order[0]].detach().to(like.device, wide), weights[order[0]]
    for k in order[1:]:
        total += weights[k]
        mean = moved_towards(mean, tensors[k].detach().to(mean), weights[k] / total)
    return mean.to(like)


def moved_towards(mean: torch.Tensor, tensor: torch.Tensor, share: float) -> torch.Tensor:
    """A point between two tensors; where they are equal, infinite values included, that value.

    Args:
        mean: the point at share 0.
        tensor: the point at share 1.
        share: from 0 to 1.
    """
    return torch.where(mean == tensor, mean, torch.lerp(mean, tensor, share))


def is_number(tensor: torch.Tensor) -> bool:
    """Whether values can be averaged."""
    return tensor.is_floating_point() or tensor.is_complex()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to average in: at least single precision.

    Args:
        dtype: floating or complex.
    """
    if dtype.is_complex:
        return torch.promote_types(dtype, torch.complex64)
    return torch.float64 if dtype == torch.float64 else torch.float32


def copy_of(model: nn.Module, state: State | None = None) -> nn.Module:
    """A copy that shares no memory with the model.

    Args:
        model: left as it is.
        state: the very tensors that the copy is to hold, by every name of its parameters and
            buffers; copies of the model's own when left out.

    Raises:
        InputError: the model holds what cannot be copied.
    """
    own = named_state(model)
    if state is None:
        clones = {id(tensor): tensor.detach().clone() for tensor in own.values()}
        state = {name: clones[id(tensor)] for name, tensor in own.items()}
    try:
        with no_warnings():  # of classes that are deprecated
            if isinstance(model, fx.GraphModule):
                result: nn.Module = copy_with_state(model, state)
            else:
                result = copy.deepcopy(model, replacements(model, state))
    except (TypeError, RuntimeError, AttributeError, pickle.PicklingError) as error:
        raise InputError(
            f"the model cannot be copied: {type(error).__name__}: {error}. Merging makes new "
            "models; take out what the model holds beside tensors and plain values."
        ) from error
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in result.named_modules():
        module.training = modes.get(name, module.training)
    return result


def _check_ties(state: State, ties: Sequence[tuple[str, ...]], label: str) -> None:
    """Refuse a state with several tensors where the model has one."""
    for first, *rest in ties:
        for name in rest:
            one, other = state[first], state[name]
            if storage_identity(one) != storage_identity(other) and not torch.equal(one, other):
                raise ArchitectureMismatchError(
                    f"{first} and {name} are one tensor in the model, and differ in {label}. "
                    "Tie them in both models, or in none."
                )
