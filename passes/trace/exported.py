"""torch.export as a tracer: a graph of ATen operators that keeps the model's state names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_leaves, tree_map_only

from fxrebasin.passes.trace.graph_state import copy_graph
from fxrebasin.running.switches import TRACING, shared


def exported_graph(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    finish: Callable[[Any], Any] = lambda returned: returned,
    *,
    dynamic_batch: bool = True,
) -> fx.GraphModule:
    """Trace `model(*args, **kwargs)` with torch.export into a module that shares its state.

    With `dynamic_batch`, axis 0 of every input that is as long as that of the first (and not 1)
    is left open; torch.export closes those that the model fixes. The checks of the input's shape
    that torch.export adds are left out: they are about sizes that were not tried. The graph
    returns what `finish` makes of what the model returned.

    Whatever `torch.export` or the model raises is passed on.
    """
    # torch.export treats a tensor that is passed twice as one input: each input gets its own
    own_args, own_kwargs = tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone(), (tuple(args), dict(kwargs))
    )
    shapes = _dynamic_shapes(own_args, own_kwargs) if dynamic_batch else None
    with TRACING, _quiet(), trusted_distributions(), _returning(model, finish):
        program = torch.export.export(
            model, own_args, own_kwargs, dynamic_shapes=shapes, strict=False
        )
        module = program.module(check_guards=False)
    # a plain GraphModule, without the hooks and the refusal of `eval` that module() adds
    return fx.GraphModule(module, copy_graph(module.graph), type(model).__name__)


def has_open_axis(graph_module: fx.GraphModule) -> bool:
    """Whether the graph is for several sizes of an axis of an input.

    torch.export closes an axis that it was told to leave open if the model asks for its size, and
    the batch axis is never left open for one row.
    """
    values = [node.meta.get("val") for node in graph_module.graph.nodes if node.op == "placeholder"]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return any(isinstance(size, torch.SymInt) for value in tensors for size in value.shape)


def _dynamic_shapes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A `torch.export.ShapesCollection` (which export takes and does not declare), or None."""
    leaves = tree_leaves((tuple(args), dict(kwargs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
    if not tensors or tensors[0].shape[0] < 2:
        return None
    shapes = torch.export.ShapesCollection()
    for tensor in tensors:
        if tensor.shape[0] == tensors[0].shape[0]:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    return shapes


@contextmanager
def _returning(model: nn.Module, finish: Callable[[Any], Any]) -> Iterator[None]:
    """Let a call of the model return what `finish` makes of it."""
    hook = model.register_forward_hook(lambda module, args, returned: finish(returned))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _trusted() -> Iterator[None]:
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


_all_trusted = shared(_trusted)


@contextmanager
def trusted_distributions() -> Iterator[None]:
    """Leave out the checks of the arguments of distributions: they look at values.

    There are none while a model is exported, and what a model computes does not depend on them.
    """
    with _all_trusted():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's log of a failed export off the terminal: the error says the same."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
