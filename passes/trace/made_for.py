"""Which sizes of its inputs a graph of torch.export was made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fxrebasin.models.input_names import named_inputs
from fxrebasin.models.resizing import resized
from fxrebasin.passes.trace.guards import now

_KEY = "made_for_sizes"
"""In the `meta` of a graph, which copies keep, and an attribute, which pickles keep.

What is there is plain, since a stored graph needs torch only.
"""

Place: TypeAlias = tuple[str, int]
"""The name of an input, and one of its axes."""


@dataclass(frozen=True)
class MadeFor:
    """Sizes of inputs for which a graph is what it was made of.

    It may run on others, but there it may be something else: a loop over the steps of a sequence
    has as many turns as there were steps.

    Attributes:
        open: what stands for the size of an axis that may have any; equal sizes have one.
        closed: why the size of an axis is that of the example, if PyTorch was asked to leave it
            open.
        also: other sizes, by what stands for them, on which it was compared with the model.
    """

    open: Mapping[Place, str]
    closed: Mapping[Place, str]
    also: Mapping[str, int] = field(default_factory=dict)


def made_for(model: nn.Module) -> MadeFor | None:
    """What is known of a graph; None if it is not one of ATen operators.

    Sizes in graphs of torch.fx are looked up when they run, as in the model itself.

    Args:
        model: any module.

    Example:
        >>> from fxrebasin.passes.trace.exported import exported_graph
        >>> graph = exported_graph(nn.Linear(2, 2), (torch.ones(3, 2),), {})
        >>> list(made_for(graph).open)
        [('input', 0)]
        >>> made_for(fx.symbolic_trace(nn.Linear(2, 2)))
    """
    if not isinstance(model, fx.GraphModule):
        return None
    known = model.meta.get(_KEY) or vars(model).get(_KEY)
    if known is not None:
        return MadeFor(**known)
    calls = [node for node in model.graph.nodes if node.op.startswith("call_")]
    if not any(isinstance(node.target, torch._ops.OpOverload) for node in calls):
        return None
    if any(node.op != "call_function" for node in calls):
        return None
    places: dict[Place, str] = {}
    for node in model.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        sizes: Any = value.shape if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(sizes):
            if isinstance(size, torch.SymInt) and now(size).is_Symbol:
                places[str(node.target), axis] = str(now(size))
    return MadeFor(places, {})


def note_sizes(graph_module: fx.GraphModule, made: MadeFor) -> None:
    """Keep what is known of a graph with it."""
    plain = {item.name: dict(getattr(made, item.name)) for item in fields(made)}
    graph_module.meta[_KEY] = plain
    vars(graph_module)[_KEY] = plain


def note_sizes_of(graph_module: nn.Module, original: nn.Module) -> None:
    """Keep what is known of a graph with a copy of it: `deepcopy` forgets what a file had."""
    made = made_for(original)
    if made is not None and isinstance(graph_module, fx.GraphModule):
        note_sizes(graph_module, made)


def note_closed(graph_module: fx.GraphModule, places: Iterable[Place], reason: str) -> None:
    """Note of axes why they are closed, unless they are open or another reason is known.

    Args:
        graph_module: its `meta` is changed.
        places: of inputs.
        reason: in words.
    """
    made = made_for(graph_module)
    if made is not None:
        closed = {place: reason for place in places if place not in made.open}
        note_sizes(graph_module, replace(made, closed=closed | dict(made.closed)))


def has_open_batch(
    graph_module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Whether a graph is for any number of rows: the first axis of the first tensor is open."""
    made = made_for(graph_module)
    names = named_inputs(graph_module, args, kwargs)
    first = next((name for name, tensor in names.items() if tensor.dim()), "")
    return made is None or (first, 0) in made.open


def with_sizes(
    graph_module: fx.GraphModule,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs with other sizes of open axes.

    Args:
        graph_module: what takes them.
        args: positional inputs.
        kwargs: keyword inputs.
        sizes: by what stands for them.
    """
    made = made_for(graph_module)
    labels = {} if made is None else made.open
    places = [
        {axis: sizes[x] for (own, axis), x in labels.items() if own == name and x in sizes}
        for name in named_inputs(graph_module, args, kwargs)
    ]
    return resized(args, kwargs, places)
