"""One symmetry for several states: each has the constants that it relies on, or is analysed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fxrebasin.merge.sources import Sources
from fxrebasin.merge.states import copy_of
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.reliance import contradictions, refusal
from fxrebasin.running.batches import State
from fxrebasin.running.preserve import tensors_of
from fxrebasin.symmetry import Symmetry
from fxrebasin.uniformity import digest_of


def shared_symmetry(sources: Sources, analyse: Callable[[nn.Module], Symmetry]) -> list[Symmetry]:
    """The symmetry of each of several models, which is one and the same group.

    The first model is analysed with its own state. Where another has the constants that were
    relied on, the symmetry is its own as well; otherwise it is analysed too.

    Args:
        sources: the models.
        analyse: from a module to its symmetry.

    Raises:
        ArchitectureMismatchError: the constants of a model give it another symmetry.
        InputError: a model does not run on the inputs.
    """
    first = analyse(_holding(sources, 0))
    found = [first]
    for index in range(1, len(sources)):
        if not _differences(sources, index, first):
            found.append(first)
            continue
        own = analyse(_holding(sources, index))
        if not first.identity().has_group_of(own.identity()):
            raise refusal(_differences(sources, index, first), f"those of models[{index}]")
        found.append(own)
    return found


def _holding(sources: Sources, index: int) -> nn.Module:
    """A module that holds the state of one of the models."""
    module = sources.module(index)
    return loaded(sources.model, sources.state(index)) if module is None else module


def _differences(sources: Sources, index: int, first: Symmetry) -> list[str]:
    """What the symmetry of the first model relies on and another does not have, in words."""
    module = sources.module(index)
    if module is None:
        return contradictions(first.relies_on, sources.state(index))
    faults = contradictions(first.relies_on, named_state(module))
    leader = sources.module(0)
    if not _same_constants(module, sources.model if leader is None else leader):
        faults.append("tensors outside the state differ")
    return faults


def _same_constants(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same tensors that are neither parameters nor buffers."""
    return _outside(one) == _outside(other)


def _outside(module: nn.Module) -> list[str]:
    inside = {id(tensor) for tensor in named_state(module).values()}
    gradients = {id(tensor.grad) for tensor in module.parameters()}
    return [
        digest_of(tensor)
        for tensor in tensors_of(module)
        if id(tensor) not in inside | gradients and _is_plain(tensor)
    ]


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)


def loaded(model: nn.Module, state: State) -> nn.Module:
    """A copy of a model that holds the tensors of a state, without copying these.

    Args:
        model: gives what is in no state dict, and dtypes and devices.
        state: by the names of its state dict.

    Raises:
        InputError: the model cannot be copied.
    """
    own = named_state(model)
    made: dict[int, torch.Tensor] = {}
    for name in sorted(own, key=lambda n: n not in state):
        if id(own[name]) not in made:
            tensor = state.get(name)
            made[id(own[name])] = own[name].detach() if tensor is None else tensor.to(own[name])
    return copy_of(model, {name: made[id(tensor)] for name, tensor in own.items()})
