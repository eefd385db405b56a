"""Run a model once and record what its operators say about the axes of its tensors.

The forward pass runs under a dispatch mode that sees ATen operators, on meta tensors: parameters
and inputs have shapes but no data. Tensors that depend on neither (index tables, masks, position
ranges) are constants; they keep their data, so that indices mean something. A model that looks at
the data of its activations is run again on real tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.choices import Choices
from fxrebasin.errors import FxRebasinError
from fxrebasin.models.example_inputs import wrong_inputs
from fxrebasin.passes.propagate.escapes import NeedsDataError
from fxrebasin.passes.propagate.model_state import Held, held_tensors
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.passes.propagate.propagator import RunOn
from fxrebasin.passes.propagate.runs import run_model
from fxrebasin.running.messages import attempt, out_of_memory
from fxrebasin.running.outputs import ReducingError
from fxrebasin.running.switches import no_warnings, shared

_NO_CHOICES = Choices()


class NeedsValuesError(FxRebasinError):
    """What is found without the values of parameters may not be what is found with them."""


def propagate(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    choices: Choices = _NO_CHOICES,
    held: Sequence[Held] | None = None,
    *,
    values: bool = True,
) -> Propagation:
    """Record the constraints of one forward pass of `model` in eval mode.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        choices: of the user: buffers that are state, outputs that count.
        held: the tensors of the model and what they are taken for, if that is known.
        values: False if the model's parameters have values somewhere else, which can be had.

    Raises:
        NeedsValuesError: the model has to be run with these values.
        InputError: the model does not run on these inputs, or it has no such outputs.
    """
    found: list[Propagation] = []
    tensors = held_tensors(model, choices.state_buffers) if held is None else held

    def run(kind: RunOn) -> None:
        found.append(run_model(model, args, kwargs, tensors, choices, kind))

    error = attempt(lambda: run(RunOn.META))
    if error is not None and _may_run_otherwise(error):
        if not values:
            raise NeedsValuesError from error
        on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
        with _without_mkldnn():
            again = attempt(lambda: run(RunOn.ALL_META if on_meta else RunOn.REAL))
        error = error if on_meta and again is not None else again
    if isinstance(error, FxRebasinError):
        raise error
    if error is not None:
        raise wrong_inputs(model, args, kwargs, error) from error
    return found[0]


def _may_run_otherwise(error: Exception) -> bool:
    """Whether a model that does not run on meta tensors may run on others."""
    if out_of_memory(error):
        return False
    fails_on_meta = isinstance(error, NeedsDataError | ReducingError)
    return fails_on_meta or not isinstance(error, FxRebasinError)


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Recurrent layers come as ordinary operators and not as one of mkldnn's."""
    with _all_without_mkldnn():
        yield


@contextmanager
def _mkldnn_off() -> Iterator[None]:
    with no_warnings():
        flags = torch.backends.mkldnn.flags(enabled=False)
        flags.__enter__()
    try:
        yield
    finally:
        with no_warnings():
            flags.__exit__(None, None, None)


_all_without_mkldnn = shared(_mkldnn_off)
