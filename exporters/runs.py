"""Run a model on sets of inputs, in its own precision and in float64, leaving it as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fxrebasin.blame import describe_call, first_lines
from fxrebasin.errors import InputError
from fxrebasin.exporters.float64 import TrueFloat64, float64_copy, widened
from fxrebasin.exporters.input_sets import InputSet
from fxrebasin.exporters.outputs import named_tensors
from fxrebasin.passes.preserve import preserve

Tensors: TypeAlias = dict[str, torch.Tensor]


def run_native(model: nn.Module, sets: Sequence[InputSet]) -> list[Tensors | Exception]:
    """What the model returns on each set in its own precision, or raises. It is not modified."""
    with preserve(model):
        return [_attempt(model, one, _cloned) for one in sets]


def run_float64(model: nn.Module, sets: Sequence[InputSet]) -> list[Tensors | Exception]:
    """What the model returns on each set in float64 throughout, or raises. It is not modified."""
    with preserve(model):
        twin = float64_copy(model)
        with TrueFloat64():
            return [_attempt(twin, one, widened) for one in sets]


def _attempt(
    model: nn.Module, inputs: InputSet, prepare: Callable[[Any], Any]
) -> Tensors | Exception:
    args, kwargs = prepare((inputs.args, dict(inputs.kwargs)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = call_quietly(model, args, kwargs)
    except Exception as error:  # noqa: BLE001 - a model's forward may raise anything
        return error
    return {name: tensor.detach().clone() for name, tensor in named_tensors(returned).items()}


def call_quietly(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a module; a GraphModule would print on stderr where in its code an exception passed."""
    return nn.Module.__call__(model, *args, **kwargs)


def _cloned(value: Any) -> Any:
    """Copies of all tensors in `value`: models write to their inputs, and return their state."""
    return tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value
    )


def usable_runs(
    model: nn.Module, sets: Sequence[InputSet], *runs: Sequence[Tensors | Exception]
) -> tuple[list[list[Tensors]], list[InputSet], tuple[str, ...]]:
    """The runs and sets to compare on, and notes about sets that are left out."""
    kept, notes = [], []
    for index, one in enumerate(sets):
        fault = next((fault for run in runs if (fault := _fault(run[index]))), None)
        if one.required or fault is None:
            kept.append(index)
        else:
            notes.append(f"inputs left out ({one.label}): {fault}")
    tensors = [
        [tensors_of("the model", model, sets[index], run[index]) for index in kept] for run in runs
    ]
    return tensors, [sets[index] for index in kept], tuple(notes)


def _fault(run: Tensors | Exception) -> str | None:
    """Why a run says nothing about equivalence, in words; None if it does."""
    if isinstance(run, Exception):
        return first_lines(run, 1)
    return "an output is NaN" if any(t.isnan().any() for t in run.values()) else None


def tensors_of(role: str, model: nn.Module, inputs: InputSet, run: Tensors | Exception) -> Tensors:
    """The tensors of a run, or the error that says why there are none.

    Raises:
        InputError: `model`, which the message calls `role`, raised.
    """
    if isinstance(run, Exception):
        raise InputError(
            f"{role} does not run on the inputs ({inputs.label}): "
            f"{describe_call(model, inputs.args, inputs.kwargs)} raised {first_lines(run)}\n"
            "Both models have to take the same inputs, in their own precision and in float64."
        ) from run
    return run
