"""Values that a model keeps of earlier runs, and that a graph of it took for constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx, nn

from fxrebasin.errors import TraceError
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.running.preserve import tensors_of
from fxrebasin.wording import listed


def refuse_kept_values(
    model: nn.Module, graph_module: fx.GraphModule, after: Mapping[str, torch.Tensor]
) -> None:
    """Refuse a graph that has a kept value in the place of what a permutation moves.

    A model may make a value of its weights once and keep it: the graph of such a model that has
    run does not read the weights, while analysis, on meta tensors, saw that they are read.

    Args:
        model: that was traced.
        graph_module: what the tracer made of it.
        after: the state that the graph is going to have, by name.

    Raises:
        TraceError: the graph does not read what changes in the state, but a value that the model
            keeps.
    """
    state = named_state(graph_module)
    names = [name for name in _names_read(graph_module) if name in state]
    if not _keeps_any(model, [state[name] for name in names]):
        return
    read = {id(state[name]) for name in names}
    unread = [name for name, tensor in state.items() if id(tensor) not in read]
    changed = [name for name in unread if not torch.equal(state[name], after[name])]
    if changed:
        raise TraceError(
            f"the model keeps values that it made of {listed(changed, 3)} in an earlier run: a "
            "graph of it would go on with these, whatever the weights. Pass a model that has not "
            "run since its weights were loaded, or call its `train()` and `eval()` first, if that "
            "makes it forget them; the permuted weights themselves, "
            "`permutation.permute_state_dict(model.state_dict())`, are right"
        )


def _keeps_any(model: nn.Module, read: Sequence[torch.Tensor]) -> bool:
    """Whether floating-point numbers among those that are read are held, but not as state."""
    held = _places(t for t in tensors_of(model) if t.is_floating_point() and t.numel() > 1)
    return not _places(read).isdisjoint(held - _places(named_state(model).values()))


def _places(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Where tensors have their numbers, of those that have them in one place of memory."""
    plain = (t for t in tensors if t.layout == torch.strided and not t.is_meta)
    return {t.data_ptr() for t in plain if type(t) in (torch.Tensor, nn.Parameter)}


def _names_read(graph_module: fx.GraphModule) -> Iterable[str]:
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.users:
            yield str(node.target)
        elif node.op == "call_module":
            yield from (f"{node.target}.{name}" for name in named_state(modules[node.target]))
