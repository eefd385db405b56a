"""One symmetry for several states: each has the constants that it relies on, or is analysed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import nn

from fxrebasin.layout import Layout, names_in, same_layout
from fxrebasin.merge.sources import Sources
from fxrebasin.merge.states import copy_of
from fxrebasin.passes.match.problem import HasSymmetry
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.reliance import contradictions, refusal
from fxrebasin.running.batches import State
from fxrebasin.running.preserve import tensors_of
from fxrebasin.symmetry import Symmetry
from fxrebasin.uniformity import digest_of, has_bits


def shared_symmetry(
    sources: Sources,
    analyse: Callable[[nn.Module], Symmetry],
    indices: Collection[int] | None = None,
) -> tuple[Symmetry, dict[int, Symmetry]]:
    """The symmetry of the first model, and of each of several, which is one and the same group.

    The first model is analysed with its own state. Where another has the constants that were
    relied on, the symmetry is its own as well; otherwise it is analysed too. Tensors in which the
    models differ are those of the architecture in all of this.

    Args:
        sources: the models.
        analyse: from a module to its symmetry.
        indices: of the models; all when left out.

    Raises:
        ArchitectureMismatchError: the constants of a model give it another symmetry.
        InputError: a model does not run on the inputs.
    """
    leader = _leader(sources)
    first = analyse(leader)
    found = {}
    for index in range(len(sources)) if indices is None else indices:
        faults = _differences(sources, index, first, leader)
        if not faults:
            found[index] = first
            continue
        module = sources.module(index)
        own = analyse(_holding(sources, index) if module is None else module)
        if not has_group_of(own, first, sources.common):
            raise refusal(faults, f"those of models[{index}]")
        common = {n: r for n, r in own.relies_on.items() if n in sources.common}
        found[index] = replace(first, relies_on={**first.relies_on, **common})
    return first, found


def has_group_of(own: HasSymmetry, first: HasSymmetry, common: Collection[str]) -> bool:
    """Whether two models have the same symmetry in the tensors that both have.

    Args:
        own: of one model.
        first: of another.
        common: names of these tensors.
    """
    layouts = [_within(symmetry.layout, common) for symmetry in (own, first)]
    held = [names_in(layout, layout) for layout in layouts]
    classes = [
        {c.name: (c.size, c.within) for c in symmetry.classes if c.name in names}
        for symmetry, names in zip((own, first), held, strict=True)
    ]
    return classes[0] == classes[1] and same_layout(*layouts)


def _within(layout: Layout, names: Collection[str]) -> Layout:
    return {name: groups for name, groups in layout.items() if name in names}


def _leader(sources: Sources) -> nn.Module:
    """The first model, with the tensors of the architecture where models differ."""
    module = sources.module(0)
    return _holding(sources, 0) if module is None or sources.differs(0) else module


def _holding(sources: Sources, index: int) -> nn.Module:
    """A module that holds the state of one of the models."""
    return loaded(sources.model, sources.common_state(index))


def _differences(sources: Sources, index: int, first: Symmetry, leader: nn.Module) -> list[str]:
    """What the symmetry of the first model relies on and another does not have, in words."""
    module = sources.module(index)
    if index == 0 and (module is None or module is leader):
        return []
    relied = {name: r for name, r in first.relies_on.items() if name in sources.common}
    if module is None:
        return contradictions(relied, sources.common_state(index))
    faults = contradictions(relied, named_state(module))
    if not _same_constants(module, leader if leader is sources.module(0) else sources.model):
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
        if id(tensor) not in inside | gradients and has_bits(tensor)
    ]


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
