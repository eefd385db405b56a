"""A permutation from a file, shown to hold for the weights at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxrebasin.alignment import Alignment, Certificate, applied_exactly
from fxrebasin.calls.applying import held_by
from fxrebasin.choices import choices_for
from fxrebasin.cli.options import Inputs
from fxrebasin.cli.work import Bench
from fxrebasin.exporters.verify.equivalence import compare_states
from fxrebasin.exporters.verify.floors import tolerance_of
from fxrebasin.exporters.verify.rounding import rounding_of
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.progress import waiting
from fxrebasin.proof import prove_state
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.outputs import Wanted
from fxrebasin.storage.digests import same_state, state_digest

OTHER_STATE = (
    "these are not the weights that the certificate was made from: their units are moved as it "
    "says, which aligns them with nothing unless they are alike"
)

_ROUNDED = (
    "the alignment moves biases through weights, which were rounded when they were stored: the "
    "tolerance is that of rounding"
)


def made_from_these(permutation: Certificate, state: Mapping[str, torch.Tensor]) -> bool | None:
    """Whether a state is the one that a permutation was found for.

    Args:
        permutation: as it was found.
        state: of the model, in its own dtypes.

    Returns:
        None if the permutation does not say what it was made from, or if that was an ONNX file.
    """
    return same_state(permutation.found_with.states.get("model"), state_digest(state))


def proved_on(
    bench: Bench, permutation: Certificate, inputs: Inputs
) -> tuple[Certificate, EquivalenceReport | None]:
    """The permutation for the weights on a bench, and the proof that it leaves the function alone.

    Args:
        bench: holds the weights.
        permutation: of the same architecture.
        inputs: which outputs and buffers count; those that it was found with when left out.

    Raises:
        ArchitectureMismatchError: the permutation belongs to another architecture.
        EquivalenceError: the permuted weights compute something else.
        InputError: the model does not run on the inputs.
    """
    module = bench.module
    choices = choices_for(module, **inputs.choices).or_those_of(permutation.found_with)
    args, kwargs = normalise_inputs(module, bench.example.args, bench.example.kwargs, check=False)
    with waiting("comparing"):
        held = held_by(permutation, module, args, kwargs, choices)
        proof = _proof(module, held, (args, kwargs), choices.outputs)
    return held, proof


def _proof(
    module: nn.Module,
    held: Certificate,
    inputs: tuple[tuple[Any, ...], Mapping[str, Any]],
    wanted: Wanted,
) -> EquivalenceReport | None:
    """What shows that the function stays.

    What an alignment made and was stored is rounded, and biases that it moved through weights are
    brought back as they were before: the rounding of the weights between them is left.
    """
    state = named_state(module)
    if not isinstance(held, Alignment) or not (held.source.added or held.target.added):
        return prove_state(module, state, held, inputs, wanted)
    moved = applied_exactly(held, state)
    report = compare_states(module, state, moved, *inputs, wanted, label="the model", few=1)
    if report.passed:
        return report
    floor, _ = rounding_of(module, module, *inputs, wanted)
    room = tolerance_of(floor)
    outputs = [replace(one, tolerance=max(one.tolerance, room)) for one in report.outputs]
    rounded = replace(report, outputs=tuple(outputs), notes=(*report.notes, _ROUNDED))
    rounded.raise_if_failed()
    return rounded
