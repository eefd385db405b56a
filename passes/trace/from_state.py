"""Constants of a graph that are parameters or buffers, or views of them, are read from these.

A model that keeps a weight in a list, in a closure or as a view of its own gives a tracer a tensor
that no name leads to. In a graph it would keep its old numbers when the state is permuted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxrebasin.gather import identity_of
from fxrebasin.passes.trace.graph_state import named_state


@dataclass(frozen=True)
class OtherWays:
    """Names of parameters and buffers that a model reads by other ways than these names.

    Attributes:
        read: those that the graph now reads by name.
        unknown: those of which it reads what no view of them is known to be.
    """

    read: frozenset[str]
    unknown: frozenset[str]


def read_from_state(graph_module: fx.GraphModule, model: nn.Module) -> OtherWays:
    """Read what shares memory with the state from the state.

    Args:
        graph_module: of the model, whose state it holds; it is changed.
        model: its state counts.

    Example:
        >>> from fxrebasin.passes.trace.graph_state import carry_state
        >>> from fxrebasin.passes.trace.symbolic import symbolic_graph
        >>> net = nn.Linear(2, 2, bias=False)
        >>> turned = net.weight.t()
        >>> net.forward = lambda x: x @ turned
        >>> graph_module = symbolic_graph(net, (torch.ones(1, 2),), {})
        >>> carry_state(graph_module, net)
        >>> sorted(read_from_state(graph_module, net).read)
        ['weight']
        >>> [str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"]
        ['weight']
    """
    state = named_state(model)
    owners: dict[object, str] = {}
    for name in sorted(state, key=lambda name: -state[name].numel()):  # the largest view first
        owners.setdefault(_memory(state[name]), name)
    read, unknown = set(), set()
    for node in list(graph_module.graph.nodes):
        if node.op != "get_attr" or node.target in state:
            continue
        value = attrgetter(str(node.target))(graph_module)
        owner = owners.get(_memory(value)) if isinstance(value, Tensor) else None
        if owner is None:
            continue
        if _is_within(value, state[owner]):
            _replace(graph_module.graph, node, value, _exact(state, value) or owner, state)
            _forget(graph_module, str(node.target))
            read.add(owner)
        else:
            unknown.add(owner)
    if read:
        graph_module.recompile()
    return OtherWays(frozenset(read), frozenset(unknown))


def _memory(tensor: Any) -> object:
    if not isinstance(tensor, Tensor):
        return None
    identity = identity_of(tensor)
    return identity[0] if isinstance(identity, tuple) else identity


def _exact(state: Mapping[str, Tensor], value: Tensor) -> str | None:
    """The name of the very tensor, if there is one."""
    own = identity_of(value)
    return next((name for name, tensor in state.items() if identity_of(tensor) == own), None)


def _is_within(view: Tensor, owner: Tensor) -> bool:
    """Whether a dense tensor has all the elements that a view shows."""
    if view.dtype != owner.dtype or not view.numel():
        return False
    dense = sorted(zip(owner.stride(), owner.shape, strict=True))
    expected = 1
    for step, size in dense:
        if size > 1 and step != expected:
            return False
        expected *= size
    reach = sum((n - 1) * step for n, step in zip(view.shape, view.stride(), strict=True))
    first = view.storage_offset() - owner.storage_offset()
    return first >= 0 and first + reach < owner.numel()


def _replace(
    graph: fx.Graph, node: fx.Node, value: Tensor, name: str, state: Mapping[str, Tensor]
) -> None:
    owner = state[name]
    with graph.inserting_before(node):
        new = graph.get_attr(name)
        if identity_of(owner) != identity_of(value):
            new = graph.call_function(*_view(new, value, owner))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _view(source: fx.Node, value: Tensor, owner: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """What makes the view of its owner: axes in another order, or else by strides."""
    if value.numel() == owner.numel() and value.dim() == owner.dim():
        order = [_axis_with(owner, step, size) for step, size in _axes(value)]
        if sorted(order) == list(range(owner.dim())):
            return torch.permute, (source, order)
    first = value.storage_offset() - owner.storage_offset()
    return torch.as_strided, (source, list(value.shape), list(value.stride()), first)


def _axes(tensor: Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.stride(), tensor.shape, strict=True))


def _axis_with(tensor: Tensor, step: int, size: int) -> int:
    axes = _axes(tensor)
    return axes.index((step, size)) if (step, size) in axes else -1


def _forget(graph_module: fx.GraphModule, target: str) -> None:
    """Take away an attribute that no node reads any more."""
    if any(node.op == "get_attr" and node.target == target for node in graph_module.graph.nodes):
        return
    path, _, name = target.rpartition(".")
    holder = graph_module.get_submodule(path)
    if name in holder._parameters or name in holder._buffers or hasattr(holder, name):
        delattr(holder, name)
