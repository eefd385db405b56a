"""Do two models compute the same function? Measured, with the figures to judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn

from fxrebasin.choices import choices_for
from fxrebasin.errors import InputError
from fxrebasin.exporters.verify.floors import FLOAT64_TOLERANCE, noise_floors, tolerance_of
from fxrebasin.exporters.verify.input_sets import InputSet, batch_size
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.references import References, reference_runs
from fxrebasin.exporters.verify.rounding import with_rounding_told
from fxrebasin.exporters.verify.runs import (
    Subject,
    Tensors,
    fault_of,
    run_float64,
    run_native,
    tensors_of,
)
from fxrebasin.exporters.verify.weak_outputs import weak_outputs
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.models.example_inputs import normalise_inputs
from fxrebasin.reports.equivalence import EquivalenceReport, OutputFigures
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.surroundings import in_own_surroundings

# Of two models whose relation nobody has proved. Of 425 single bits of a file that changed what a
# small network computes, 48 passed with 64 rows and none with these.
ROWS = 256


@in_own_surroundings
def verify(
    model: nn.Module,
    other: nn.Module | str | PathLike[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> EquivalenceReport:
    """Compare what `model` computes with what another model, or an ONNX file, computes.

    Both are run on the example inputs, on a set with other values and another batch size, and on
    others with values far apart until there are `ROWS` rows, fewer where a row takes long; on more
    if the model branches on values and has parameters that were not read yet (see
    `fxrebasin.exporters.verify.references`). Inputs that the model refuses are left out;
    `report.notes` says so, and which parameters no run read, and which units no row showed.

    Another module is compared in float64 with the tolerance `FLOAT64_TOLERANCE`. An ONNX file is
    run on onnxruntime's CPU provider and compared with PyTorch in the model's own precision; the
    tolerance is `NOISE_MULTIPLE` times the noise floor, the error that `model` itself has in its
    own precision against float64. A file with a fixed batch gets sets of that size. Neither model
    is modified.

    The tolerance is for the largest number of an output. No other may be off by more than a
    thousand times that of itself, unless rounding errors at its place are as large: beside a mask
    of -1e9 any error is little (see `fxrebasin.exporters.verify.noise`).

    Args:
        model: the reference; any mode, it is run in eval mode.
        other: a module that takes the same inputs, or the path of an ONNX file.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        state_buffers: as for `analyze`; checked to exist, and of no effect on a comparison.
        outputs: what is compared: names of outputs as the report has them, or patterns of names; or
            a function of what each model returned, or was traced with, that returns what counts.
            All but caches of keys and values when left out.

    Returns:
        The report; it does not raise if the two differ (`report.raise_if_failed()` does).

    Raises:
        InputError: the inputs do not fit one of the two, or there are no such outputs.
        CheckpointError: the file is missing or is not an ONNX model.
        ExportError: onnxruntime cannot run the file.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> verify(net, net, torch.randn(4, 3)).passed
        True
    """
    model = own_structure(unwrap(model))
    check_usable(model, needs_weights=False)
    wanted = choices_for(model, state_buffers=state_buffers, outputs=outputs).outputs
    candidate = _candidate(other)
    args, kwargs = normalise_inputs(model, example_inputs, example_kwargs)
    if not isinstance(candidate, OnnxModel):
        report = compare_float64(model, candidate, args, kwargs, wanted, rows=ROWS)
        return with_rounding_told(report, model, candidate, args, kwargs, wanted)
    dynamic = candidate.batch_is_dynamic(model, args, kwargs)
    subject = Subject(model, wanted=wanted)
    references = reference_runs(subject, args, kwargs, any_batch=dynamic, rows=ROWS)
    report = compare_onnxruntime(candidate, references)
    if dynamic or references.sets[0].batch is None:
        return report
    fixed = f"the file takes batches of {references.sets[0].batch} only, and no other was compared"
    return replace(report, notes=(*report.notes, fixed))


def _candidate(other: Any) -> nn.Module | OnnxModel:
    if isinstance(other, str | PathLike):
        return OnnxModel(other)
    if isinstance(other, nn.Module):
        return own_structure(unwrap(other))
    kind = type(other).__name__
    raise InputError(f"other is of type {kind}; expected a torch.nn.Module or an ONNX path")


def compare_float64(
    model: nn.Module,
    other: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wanted: Wanted = None,
    *,
    any_batch: bool = True,
    rows: int = 0,
    few: int = 0,
    further: Sequence[InputSet] = (),
) -> EquivalenceReport:
    """Compare two modules on copies that work in float64 throughout, casts inside included.

    Passes if every floating-point output has max |other - model| / max |model| of at most
    `FLOAT64_TOLERANCE`, every integer output is equal, and both return the same names of tensors.
    Takes memory for one float64 copy at a time. See `TrueFloat64` for what is done about casts,
    and `fxrebasin.exporters.verify.references` for the inputs.

    Args:
        model: the reference; any mode, it is run in eval mode.
        other: a module that takes the same inputs.
        args: positional inputs, tensors of any shape and dtype among them.
        kwargs: keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
        any_batch: False if the other model is known to take the batch size of the inputs only.
        rows: how many rows are to be compared in all; see `reference_runs`.
        few: so many rows of the example will do, or all if 0; see `reference_runs`.
        further: sets of inputs that are compared as well.

    Raises:
        InputError: a model does not run in float64 on these inputs.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> compare_float64(net, net, (torch.ones(4, 3),), {}).max_rel
        0.0
    """
    reference = Subject(model, wanted=wanted)
    candidate = Subject(other, label="the other model", wanted=wanted, strict=False)
    references = reference_runs(
        reference, args, kwargs, any_batch=any_batch, rows=rows, few=few, further=further
    )
    runs = run_float64(candidate, references.sets)
    refused = _refused_batch(references, candidate, runs, batch_size(args, kwargs))
    if refused is None:
        return _float64_report(references, candidate, runs)
    narrow = compare_float64(model, other, args, kwargs, wanted, any_batch=False, rows=rows)
    return replace(narrow, notes=(*narrow.notes, refused))


def compare_states(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    moved: Mapping[str, torch.Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    wanted: Wanted = None,
    *,
    label: str,
    few: int = 0,
) -> EquivalenceReport:
    """Compare what a module computes with one state and with another; as `compare_float64` does.

    Nothing is traced and no model is made, so this is the cheapest proof of a permutation. Of a
    float64 copy only some parts are in memory at a time.

    Args:
        model: of the architecture; its own weights count where a state lacks them.
        state: parameters and buffers by name.
        moved: the same in another order.
        args: positional inputs.
        kwargs: keyword inputs.
        wanted: which outputs count; see `fxrebasin.running.outputs`.
        label: what messages call the model with this state.
        few: so many rows of the example will do, or all if 0; see `reference_runs`.

    Raises:
        InputError: the model does not run in float64 on these inputs.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> own = net.state_dict()
        >>> swapped = {"weight": own["weight"].flip(0), "bias": own["bias"].flip(0)}
        >>> compare_states(net, own, swapped, (torch.ones(4, 3),), {}, label="net").passed
        False
    """
    subject = Subject(model, state, label, wanted)
    references = reference_runs(subject, args, kwargs, few=few, little_memory=True)
    return compare_moved(references, moved)


def compare_moved(references: References, moved: Mapping[str, torch.Tensor]) -> EquivalenceReport:
    """Compare what a module computes with another state, as `compare_states` does.

    Args:
        references: what it computes with its own, in float64.
        moved: parameters and buffers by name; the module's own count where they are lacking.

    Raises:
        InputError: the module does not run in float64 on these inputs.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> references = reference_runs(Subject(net), (torch.ones(4, 3),), {})
        >>> compare_moved(references, {"weight": net.weight.flip(0)}).passed
        False
    """
    own = references.subject
    candidate = Subject(own.model, moved, f"{own.label}, permuted,", own.wanted)
    runs = run_float64(candidate, references.sets, little_memory=True)
    return _float64_report(references, candidate, runs)


def _refused_batch(
    references: References,
    candidate: Subject,
    runs: Sequence[Tensors | Exception],
    own: int | None,
) -> str | None:
    """A note if the candidate refuses a batch size that is not the example's."""
    for one, run in zip(references.sets, runs, strict=True):
        if isinstance(run, Exception) and one.batch != own:
            return (
                f"no other batch size than {own} was compared: {candidate.label} refuses "
                f"({one.label}: {fault_of(run)})"
            )
    return None


def _float64_report(
    references: References, candidate: Subject, runs: Sequence[Tensors | Exception]
) -> EquivalenceReport:
    sets = references.sets
    taken = [tensors_of(candidate, one, run) for one, run in zip(sets, runs, strict=True)]
    outputs, structure = _judge(references, taken)
    return EquivalenceReport(
        backend="pytorch-float64",
        outputs=outputs,
        inputs=_labels(sets),
        rows=sum(one.rows for one in sets),
        structure=structure,
        notes=(*references.notes, *weak_outputs(sets, references.runs)),
    )


def compare_onnxruntime(session: OnnxModel, references: References) -> EquivalenceReport:
    """Compare an opened ONNX file with the module that it should compute, on sets of inputs.

    The tolerance of a floating-point output is `NOISE_MULTIPLE` times its noise floor: the largest
    error, over the sets, of the module's output in its own precision against float64, but at least
    `FLOOR_ULPS` units in the last place. Integer outputs have to be equal. If only some outputs
    count, the file may have more.

    Where the runs in float64 are still to be made, that is done set by set, those of few rows
    first, until the file passes, and not at all if it passes with the least floor: a larger one
    could only widen the tolerance.

    Args:
        session: the file; closed when it has been run.
        references: what the module returns, in float64 or in its own precision.

    Raises:
        InputError: the module does not run on the example in its precision, or the file takes
            others.
        ExportError: onnxruntime fails.
    """
    own, wide = _in_both_precisions(references)
    subject, sets, natives = own.subject, own.sets, own.runs
    feeds = [session.feeds(subject.model, one.args, one.kwargs) for one in sets]
    candidates = [session.run(feed) for feed in feeds]
    session.close()
    renamed = [
        _renamed(run, like, some=subject.wanted is not None)
        for run, like in zip(candidates, natives, strict=True)
    ]
    for floors in noise_floors(own, wide):
        outputs, structure = _judge(own, renamed, floors.by_name, measured=floors.measured)
        if structure or all(figures.passed for figures in outputs):
            break
    return EquivalenceReport(
        backend=f"onnxruntime-{_coarsest(natives[0])}",
        outputs=outputs,
        inputs=_labels(sets),
        rows=sum(one.rows for one in sets),
        structure=structure,
        notes=(*own.notes, *weak_outputs(sets, natives)),
        path=str(session.path),
    )


def _in_both_precisions(references: References) -> tuple[References, Sequence[Tensors] | None]:
    """The reference in its own precision on the sets that it takes so, and in float64 if known."""
    if references.native:
        return references, None
    kept, natives, exact, notes = [], [], [], list(references.notes)
    for one, wide in zip(references.sets, references.runs, strict=True):
        (run,) = run_native(references.subject, [one])
        fault = fault_of(run)
        if one.required or fault is None:
            kept.append(one)
            natives.append(tensors_of(references.subject, one, run))
            exact.append(wide)
        else:
            notes.append(f"inputs left out ({one.label}): {fault}")
    own = replace(
        references, sets=tuple(kept), runs=tuple(natives), notes=tuple(notes), native=True
    )
    return own, exact


def _labels(sets: Sequence[InputSet]) -> tuple[str, ...]:
    """What the inputs are; of numbered sets in a row the first and the last."""
    names: dict[str, tuple[str, str]] = {}
    for one in sets:
        stem, _, number = one.label.partition(" #")
        first, _ = names.get(stem, (number, number))
        names[stem] = first, number
    return tuple(
        stem + (f" #{first}" if number else "") + (f" to #{number}" if number != first else "")
        for stem, (first, number) in names.items()
    )


def _judge(
    references: References,
    candidates: Sequence[Tensors],
    floors: Mapping[str, float] | None = None,
    *,
    measured: bool = True,
) -> tuple[tuple[OutputFigures, ...], tuple[str, ...]]:
    """Figures per output over all sets, and differences of structure.

    If floors were not `measured`, no rounding errors are measured either.
    """
    worst: dict[str, OutputFigures] = {}
    structure: dict[str, None] = {}  # in the order found, each once
    for one, reference, candidate in zip(references.sets, references.runs, candidates, strict=True):
        native = reference if references.native else None
        if reference.keys() != candidate.keys():
            structure[f"outputs {_listed(candidate)} instead of {_listed(reference)}"] = None
        for name in reference.keys() & candidate.keys():
            floor = None if floors is None else floors[name]
            tolerance = FLOAT64_TOLERANCE if floor is None else tolerance_of(floor)
            figures = compare_tensors(
                name,
                reference[name],
                candidate[name],
                tolerance=tolerance,
                noise_floor=floor,
                noise=partial(references.noise.growing, one, name, native) if measured else tuple,
            )
            worst[name] = worst[name].worst_of(figures) if name in worst else figures
    names = dict.fromkeys(name for reference in references.runs for name in reference)
    return tuple(worst[name] for name in names if name in worst), tuple(structure)


def _listed(tensors: Tensors) -> str:
    return ", ".join(tensors) or "(no tensor)"


def _renamed(candidate: Tensors, reference: Tensors, *, some: bool) -> Tensors:
    """Outputs of a file under the names of the module's: by position where the names differ."""
    if some and reference.keys() <= candidate.keys():
        return {name: candidate[name] for name in reference}
    if candidate.keys() == reference.keys() or len(candidate) != len(reference):
        return candidate
    return dict(zip(reference, candidate.values(), strict=True))


def _coarsest(tensors: Tensors) -> str:
    """Name of the least precise floating-point dtype among the outputs."""
    dtypes = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return str(coarsest).removeprefix("torch.")
