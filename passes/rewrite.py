"""The permuted model: a graph that owns permuted copies of the parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxrebasin.alignment import Certificate, applied
from fxrebasin.models.example_inputs import EXAMPLE_KEY
from fxrebasin.passes.trace.graph_state import copy_with_state, named_state
from fxrebasin.passes.trace.trace import TraceResult, trace
from fxrebasin.running.given import remade
from fxrebasin.running.outputs import Wanted


def rewrite(
    model: nn.Module,
    permutation: Certificate,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    wanted: Wanted = None,
    traced: TraceResult | None = None,
) -> fx.GraphModule:
    """Permute `model` into a graph of its own, which computes the same.

    The result has the same state dict keys, shapes, dtypes, strides, devices and `requires_grad`;
    tied parameters are one parameter again; no memory is shared with `model`, which is left as it
    is. It is in eval mode, whatever mode the model is in: a graph is traced in one mode, with its
    dropout and the like taken out, and has no other. Its state dict loads into the model's class,
    which computes the same function, in training mode too.

    The example inputs are kept in `meta`, where `normalise_inputs` finds them again.

    Args:
        model: what to permute.
        permutation: an element of the model's symmetry group, or an alignment.
        args: positional inputs to trace with.
        kwargs: keyword inputs to trace with.
        wanted: which outputs count, and the graph returns; see `trace`.
        traced: what `trace` returned for this model and these inputs, if that has been done.

    Raises:
        ArchitectureMismatchError: the permutation belongs to another architecture.
        InputError: the model is scripted, or does not run on these inputs.
        TraceError: no tracer makes a graph that computes what the model computes.

    Example:
        >>> import numpy as np
        >>> from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
        >>> from fxrebasin.permutation import Permutation
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> group = lambda axis: (AxisGroup((axis,), (Piece((Slot("h", 3),), np.arange(3)),)),)
        >>> layout = {"0.weight": group(0), "0.bias": group(0), "2.weight": group(1)}
        >>> p = Permutation((PermutationClass("h", 3),), {"h": np.array([2, 0, 1])}, layout)
        >>> permuted = rewrite(net, p, (torch.ones(4, 2),))
        >>> torch.equal(permuted.get_parameter("0.bias"), net[0].bias[[2, 0, 1]])
        True
    """
    kwargs = dict(kwargs or {})
    graph_module = (traced or trace(model, args, kwargs, wanted=wanted)).graph_module
    state = _owned(permutation, named_state(graph_module))
    result = copy_with_state(graph_module, state)
    versions = {name: module._version for name, module in model.named_modules()}
    for name, module in result.named_modules():
        module.training = False
        if name in versions:  # by which a module's class knows how to load the state dict
            module._version = versions[name]
    result.meta[EXAMPLE_KEY] = remade((tuple(args), kwargs), lambda t: t.detach().clone())
    return result


def _owned(permutation: Certificate, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The permuted state, with copies of what the permutation leaves as it is."""
    with torch.no_grad():
        permuted = applied(permutation, state)
    memo: dict[int, Any] = {}  # keeps strides, and views of one memory together
    return {
        name: _copied(tensor.detach(), memo) if tensor is state[name] else tensor
        for name, tensor in permuted.items()
    }


def _copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """A copy; of compressed sparse tensors, which `deepcopy` refuses, a clone."""
    plain = tensor.layout in (torch.strided, torch.sparse_coo)
    return copy.deepcopy(tensor, memo) if plain else tensor.clone()
