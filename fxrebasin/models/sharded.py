"""Models of which each process has a part, as `fully_shard` makes them: a whole one beside them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxrebasin.sharding import is_sharded, whole

_LIBRARY = "torch.distributed.fsdp"
# What the library leaves in the attributes of a module.
_MARKS = ("__composable_api_state", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
_TABLES = ("_parameters", "_buffers")


def unsharded(model: nn.Module) -> nn.Module:
    """The same modules with whole tensors, and without what gathers them for a forward.

    All processes that have parts of the model have to ask for it. The model stays as it is.

    Args:
        model: a module.

    Returns:
        The model itself if nothing of it is sharded.
    """
    tensors = [*model.parameters(), *model.buffers()]
    # Between a forward and the next step all tensors of such a module may be there as a whole.
    managed = any(_plain_class(type(part)) is not type(part) for part in model.modules())
    if not managed and not any(map(is_sharded, tensors)):
        return model
    found: dict[int, torch.Tensor] = {}
    for tensor in tensors:
        found.setdefault(id(tensor), _whole_like(tensor))
    return _twin(model, found, {})


def _whole_like(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor in memory of its own; a parameter if it was one.

    What is there as a whole for a while is taken from under views of it when it is cut again.
    """
    found = whole(tensor) if is_sharded(tensor) else tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(found, requires_grad=tensor.requires_grad)
    return found


def _twin(
    module: nn.Module, tensors: Mapping[int, torch.Tensor], made: dict[int, nn.Module]
) -> nn.Module:
    """A module of the class that it had, with the same attributes and other tensors."""
    if id(module) in made:
        return made[id(module)]
    plain = _plain_class(type(module))
    twin: nn.Module = plain.__new__(plain)
    made[id(module)] = twin
    attributes = vars(twin)
    attributes.update(
        {
            name: _without_gathering(value) if name.endswith("_hooks") else value
            for name, value in vars(module).items()
            if not name.startswith(_MARKS)
        }
    )
    for table in _TABLES:
        attributes[table] = {
            name: None if tensor is None else tensors.get(id(tensor), tensor)
            for name, tensor in getattr(module, table).items()
        }
    attributes["_modules"] = {
        name: None if child is None else _twin(child, tensors, made)
        for name, child in module._modules.items()
    }
    return twin


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before it was sharded."""
    library: Any = sys.modules.get(_LIBRARY)
    sharded = None if library is None else library.FSDPModule
    if sharded is None or not issubclass(kind, sharded):
        return kind
    # Made as `type("FSDPNet", (FSDPModule, Net), {})`.
    (found,) = (base for base in kind.__bases__ if base is not sharded)
    plain: type[nn.Module] = found
    return plain


def _without_gathering(hooks: Any) -> Any:
    """Hooks but for those that gather tensors for a forward."""
    if not isinstance(hooks, dict):
        return hooks
    module = f"{_LIBRARY}."
    return type(hooks)(
        (key, hook)
        for key, hook in hooks.items()
        if not str(getattr(hook, "__module__", "")).startswith(module)
    )
