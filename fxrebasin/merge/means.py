"""The mean of models in one order of units, of which one is looked at after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fxrebasin.alignment import Alignment, Certificate, applied_exactly
from fxrebasin.merge.dealing import Team, dealt, handed_on
from fxrebasin.merge.sources import Sources
from fxrebasin.merge.states import copy_of, is_number, moved_towards, own_state, wide_dtype
from fxrebasin.passes.trace.graph_state import named_state


def mean_of_models(
    sources: Sources, certificate: Callable[[int], Certificate | None], giver: int, team: Team
) -> nn.Module:
    """The weighted mean of the models in their new order.

    Args:
        sources: the models.
        certificate: from the index of a model to what brings it into that order; None for nothing.
        giver: index of the model that gives the tensors in which models differ.
        team: the processes that share the work, each of which asks for its own models only.
    """
    ignored = set(sources.ignored)
    own = named_state(sources.model)
    first: dict[int, str] = {}
    for name in own_state(sources.model):
        first.setdefault(id(own[name]), name)

    def add(mean: dict[str, torch.Tensor]) -> None:
        for index in dealt(len(sources), team):
            names = [n for n in first.values() if n not in ignored or index == giver]
            _add(mean, sources, index, certificate(index), {name: own[name] for name in names})

    mean = handed_on(team, add, own)
    made = {key: mean[name].to(own[name]) for key, name in first.items()}
    rest = {id(t): t.detach().clone() for name, t in own.items() if id(t) not in made}
    return copy_of(sources.model, {name: (made | rest)[id(t)] for name, t in own.items()})


def _add(
    mean: dict[str, torch.Tensor],
    sources: Sources,
    index: int,
    permutation: Certificate | None,
    own: Mapping[str, torch.Tensor],
) -> None:
    """Take one model into the mean of those before it, in place.

    Numbers are averaged in a dtype that is wide enough, where the architecture is; others are those
    of the heaviest model, and tensors in which the models differ those of one model.
    """
    state, ignored = sources.state(index), set(sources.ignored)
    if isinstance(permutation, Alignment):  # which acts on all at once, and is rounded once
        state, permutation = applied_exactly(permutation, state), None
    share = sources.share(index)
    for name, like in own.items():
        if name not in ignored and not is_number(like) and index != sources.heaviest:
            continue
        moved = state[name]
        if permutation is not None:
            moved = permutation.permute_tensor(name, moved)
        if name in mean:
            mean[name] = moved_towards(mean[name], moved.to(mean[name]), share)
        else:
            wide = wide_dtype(like.dtype) if is_number(like) else like.dtype
            mean[name] = moved.to(like.device, wide, copy=True)
