"""Models whose tied tensors get copies of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from fxrebasin.gather import identity_of


def ties_of(model: nn.Module) -> dict[str, str]:
    """Further names of tensors of a model, each with the first name of its tensor.

    Tensors that are one view of one memory are one tensor.

    Args:
        model: any module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> ties_of(net)
        {'1.weight': '0.weight'}
    """
    first: dict[object, str] = {}
    found = {}
    for name, tensor in held_by_name(model).items():
        if (known := first.setdefault(identity_of(tensor), name)) != name:
            found[name] = known
    return found


def held_by_name(model: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and buffers of a model by every name that they have.

    Args:
        model: any module.
    """
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def untied(model: nn.Module) -> nn.Module:
    """A copy of a model in which no parameter has two names, unless a module itself is used twice.

    It computes the same. Its state dict has the same keys, but does not fit the model's own class
    where that ties them again.

    Args:
        model: left as it is.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> ties_of(untied(net))
        {}
    """
    result = copy.deepcopy(model)
    for name in ties_of(result):
        path, _, own = name.rpartition(".")
        holder = result.get_submodule(path)
        tensor = holder._parameters.get(own)
        if tensor is not None:
            copied = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
            holder._parameters[own] = copied
    return result
