"""A model of transformers that is called with its cache in the form of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.exporters.onnx.capture import Axes
from fxrebasin.exporters.verify.equivalence import compare_float64
from fxrebasin.exporters.verify.input_sets import InputSet
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.running.own_structure import restructured
from fxrebasin.wording import listed

_SHOWN = 3  # names in a message


@dataclass(frozen=True, eq=False)
class Decoder:
    """A model that is called with a cache in the form of tensors, and returns it so.

    Attributes:
        model: shares all state with the model that it was made of.
        kwargs: an example of a call.
        axes: the dynamic ones.
        further: other calls, on which a file has to be right.
    """

    model: nn.Module
    kwargs: Mapping[str, Any]
    axes: Axes
    further: tuple[InputSet, ...]


def with_forward(model: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A module with the state and the modules of another one, called by another function."""
    decoder = copy.copy(model)
    for held in ("_modules", "_parameters", "_buffers"):
        decoder.__dict__[held] = dict(vars(model)[held])
    decoder.__dict__["forward"] = MethodType(forward, decoder)
    return decoder


def with_state_of(
    graph: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> nn.Module:
    """The model that a graph was made of, with the numbers of the graph; compared in float64.

    Args:
        graph: as `transform` returns it.
        model: of the same architecture, whose forward takes a cache; left as it is.
        args: positional inputs of both.
        kwargs: keyword inputs of both.

    Raises:
        InputError: the model is of another architecture.
        EquivalenceError: the two do not compute the same.
    """
    state, own = named_state(graph), named_state(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    differ = [n for n in parameters if n not in state or state[n].shape != own[n].shape]
    differ += [name for name in state if name not in own]
    if differ:
        raise InputError(
            f"with_past: the graph was not made of this {type(model).__name__}: they differ in "
            f"{listed(differ, _SHOWN)}"
        )
    filled = restructured(model, {id(own[name]): tensor for name, tensor in state.items()})
    compare_float64(graph, filled, args, kwargs, few=2).raise_if_failed()
    return filled


def repeated(values: torch.Tensor, count: int) -> torch.Tensor:
    """So many values, from the first again after the last."""
    return values[torch.arange(count, device=values.device) % len(values)]


def sized(tensor: torch.Tensor, rows: int, steps: int) -> torch.Tensor:
    """Keys or values, of shape `[rows, heads, steps, size]`, for so many rows and steps."""
    row = torch.arange(rows, device=tensor.device) % tensor.shape[0]
    step = torch.arange(steps, device=tensor.device) % tensor.shape[2]
    return tensor.detach()[row][:, :, step].contiguous()
