"""torch.export as a tracer: a graph of ATen operators that keeps the model's state names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_map_only

from fxrebasin.models.input_names import named_inputs
from fxrebasin.models.resizing import resized
from fxrebasin.passes.trace.graph_state import copy_graph
from fxrebasin.passes.trace.made_for import note_sizes
from fxrebasin.passes.trace.opening import Axes, Opened, batch_axes, tensors_among
from fxrebasin.passes.trace.recurrent import whole_recurrent_layers
from fxrebasin.running.switches import TRACING, shared


def exported_graph(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    finish: Callable[[Any], Any] = lambda returned: returned,
    *,
    axes: Callable[[Sequence[Any], Mapping[str, Any]], Axes] = batch_axes,
) -> fx.GraphModule:
    """Trace `model(*args, **kwargs)` with torch.export into a module that shares its state.

    The axes of inputs that `axes` names are left open; torch.export closes those that the model
    fixes, and the graph's `meta` says which. One of size 1 is traced with 2, since values may be
    repeated along it otherwise. The checks of the input's shape that torch.export adds are left
    out: they are about sizes that were not tried. The graph returns what `finish` makes of what the
    model returned.

    Whatever `torch.export` or the model raises is passed on.
    """
    wanted = axes(args, kwargs)
    own_args, own_kwargs = _at_least_two(args, kwargs, wanted)
    shapes = torch.export.ShapesCollection()
    for tensor, places in zip(tensors_among(own_args, own_kwargs), wanted, strict=True):
        if places:
            shapes[tensor] = dict.fromkeys(places, torch.export.Dim.AUTO)
    opened = Opened(wanted)
    with (
        TRACING,
        _quiet(),
        trusted_distributions(),
        whole_recurrent_layers(),
        _watched(model, opened, finish),
    ):
        program = torch.export.export(
            model,
            own_args,
            own_kwargs,
            dynamic_shapes=cast(Any, shapes) if any(wanted) else None,  # takes it, says not
            strict=False,
        )
        module = program.module(check_guards=False)
    # a plain GraphModule, without the hooks and the refusal of `eval` that module() adds
    result = fx.GraphModule(module, copy_graph(module.graph), type(model).__name__)
    names = list(named_inputs(result, own_args, own_kwargs))
    rows = [number for number, places in enumerate(batch_axes(args, kwargs)) if places]
    note_sizes(result, opened.made_for(names, rows))
    return result


def _at_least_two(
    args: Sequence[Any], kwargs: Mapping[str, Any], axes: Axes
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of inputs: torch.export takes a tensor that is passed twice for one input."""
    tensors = tensors_among(args, kwargs)
    sizes = [
        {axis: 2 for axis in places if tensor.shape[axis] == 1}
        for tensor, places in zip(tensors, axes, strict=True)
    ]
    larger = resized(args, kwargs, sizes)
    own_args, own_kwargs = tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone(), larger
    )
    return own_args, own_kwargs


@contextmanager
def _watched(model: nn.Module, opened: Opened, finish: Callable[[Any], Any]) -> Iterator[None]:
    """Let a call of the model be noted, and return what `finish` makes of what it returned."""
    noting = model.register_forward_pre_hook(
        lambda module, args, kwargs: opened.note(args, kwargs), prepend=True, with_kwargs=True
    )
    finishing = model.register_forward_hook(lambda module, args, returned: finish(returned))
    try:
        yield
    finally:
        finishing.remove()
        noting.remove()


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
