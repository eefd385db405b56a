"""The state of a graph: the same parameters and buffers, under the same names, as the model's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.passes.trace.made_for import note_sizes_of
from fxrebasin.running.preserve import tensors_of
from fxrebasin.running.subclasses import like


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of the nodes that keeps the calling convention and forgets the tracer.

    Pickles of a module with such a graph need torch only; `deepcopy` would keep the tracer.
    """
    result = fx.Graph()
    result.output(result.graph_copy(graph, val_map={}))
    result.set_codegen(graph._codegen)
    return result


def carry_state(graph_module: fx.GraphModule, model: nn.Module) -> None:
    """Give `graph_module` the very parameters and buffers of `model`, all and in the same order.

    Tracers drop what `forward` does not read, forget which buffers are not persistent, and add
    the constants they met as buffers. Afterwards the state dicts have the same keys, and those
    constants are non-persistent buffers, so that they follow the module to a device or dtype.
    """
    for path, source in model.named_modules(remove_duplicate=False):
        if not source._parameters and not source._buffers:
            continue
        target = _submodule(graph_module, path)
        if target is not source:
            _carry_tensors(source, target)
    kept = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for path, module in graph_module.named_modules(remove_duplicate=False):
        added = {name for name in module._buffers if _join(path, name) not in kept}
        module._non_persistent_buffers_set.update(added)
    for path, source in model.named_modules(remove_duplicate=False):
        _reorder(graph_module, path, source)


def _carry_tensors(source: nn.Module, target: nn.Module) -> None:
    names = [*source._parameters, *source._buffers]
    for name in names:
        for holder in (target._parameters, target._buffers, vars(target)):
            holder.pop(name, None)
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set.difference_update(names)
    target._non_persistent_buffers_set.update(source._non_persistent_buffers_set)


def _submodule(root: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`, made of empty modules where it does not exist."""
    module = root
    for name in filter(None, path.split(".")):
        child = module._modules.get(name)
        if child is None:
            child = nn.Module()
            module.add_module(name, child)
        module = child
    return module


def _reorder(graph_module: fx.GraphModule, path: str, source: nn.Module) -> None:
    """Register what the graph module has at `path` in the order of the model."""
    try:
        target = graph_module.get_submodule(path)
    except AttributeError:  # it holds no state and is not called
        return
    if target is source:
        return
    _sort(target._modules, source._modules)
    _sort(target._parameters, source._parameters)
    _sort(target._buffers, source._buffers)


def _sort(entries: dict[str, Any], order: Mapping[str, Any]) -> None:
    names = [name for name in order if name in entries]
    rest = [name for name in entries if name not in order]
    items = [(name, entries[name]) for name in names + rest]
    entries.clear()
    entries.update(items)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def named_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by every name they have, non-persistent ones too."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def copy_with_state(
    graph_module: fx.GraphModule, state: Mapping[str, torch.Tensor]
) -> fx.GraphModule:
    """A copy of the module, sharing nothing with it, that holds the tensors of `state`.

    `state` has a tensor for every name of `named_state`; the copy owns these very tensors as its
    parameters (with `requires_grad` as it was) and buffers. Tensors outside the state are cloned.
    """
    replacement = replacements(graph_module, state)
    root = nn.Module()
    for attribute in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(root, attribute, copy.deepcopy(getattr(graph_module, attribute), replacement))
    name = type(graph_module).__name__
    result = fx.GraphModule(root, copy_graph(graph_module.graph), name)
    carry_state(result, root)
    result.meta = dict(graph_module.meta)
    note_sizes_of(result, graph_module)
    return result


def replacements(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[int, Any]:
    """What `deepcopy` takes as its memo, for a copy of a module that holds the tensors of `state`.

    The copy has these very tensors as its parameters (with `requires_grad` as it was) and buffers.
    Tensors outside the state that `deepcopy` refuses are cloned.

    Args:
        model: that is going to be copied.
        state: has a tensor for every name of `named_state`.
    """
    replacement: dict[int, Any] = {}
    for name, tensor in named_state(model).items():
        if id(tensor) not in replacement:
            replacement[id(tensor)] = like(tensor, state[name])
    for tensor in tensors_of(model):
        if id(tensor) not in replacement and not tensor.is_leaf:  # deepcopy refuses these
            replacement[id(tensor)] = tensor.detach().clone()
    return replacement
