"""Do two models compute the same function? Measured, with the figures to judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from fxrebasin.choices import choices_for
from fxrebasin.compare import check_usable, unwrap
from fxrebasin.errors import InputError
from fxrebasin.exporters.input_sets import (
    InputSet,
    batch_size,
    example_sets,
    same_start,
    with_batch,
)
from fxrebasin.exporters.outputs import compare_tensors, relative_error
from fxrebasin.exporters.report import EquivalenceReport, OutputFigures
from fxrebasin.exporters.runs import Tensors, run_float64, run_native, tensors_of, usable_runs
from fxrebasin.exporters.runtime import OnnxModel
from fxrebasin.inputs import normalise_inputs

# Permuted sums differ by about 1e-16 per term; four orders of magnitude below float32's noise.
FLOAT64_TOLERANCE = 1e-10

# onnxruntime's error in float32 and PyTorch's are of the same kind and independent, so that their
# difference is a small multiple of either: 0.9 to 2.2 times the measured floor on 22 models of
# torchvision with random weights at 224 pixels. Ten leaves room for inputs that round well.
NOISE_MULTIPLE = 10.0

# The measured floor of a small model can be close to zero by luck. Below this many units in the
# last place of the largest value, a float32 result says nothing.
FLOOR_ULPS = 4.0

# A model that is chaotic in its own precision would otherwise agree with anything.
LARGEST_TOLERANCE = 0.05


def verify(
    model: nn.Module,
    other: nn.Module | str | PathLike[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    state_buffers: Sequence[str] = (),
) -> EquivalenceReport:
    """Compare what `model` computes with what another model, or an ONNX file, computes.

    Both are run on the example inputs and on one more set like them, drawn from a fixed seed (see
    `fxrebasin.exporters.input_sets`). Another module is compared in float64 with the
    tolerance `FLOAT64_TOLERANCE`. An ONNX file is run on onnxruntime's CPU provider and compared
    with PyTorch in the model's own precision; the tolerance is `NOISE_MULTIPLE` times the noise
    floor, the error that `model` itself has in its own precision against float64. If the file's
    batch axis is dynamic, the second set has another batch size. Neither model is modified.

    Args:
        model: the reference; any mode, it is run in eval mode.
        other: a module that takes the same inputs, or the path of an ONNX file.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name.
        state_buffers: as for `analyze`; checked to exist, and of no effect on a comparison.

    Returns:
        The report; it does not raise if the two differ (`report.raise_if_failed()` does).

    Raises:
        InputError: the inputs do not fit one of the two.
        CheckpointError: the file is missing or is no ONNX model.
        ExportError: onnxruntime cannot run the file.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> verify(net, net, torch.randn(4, 3)).passed
        True
    """
    model = unwrap(model)
    check_usable(model, needs_weights=False)
    choices_for(model, state_buffers=state_buffers)
    candidate = _candidate(other)
    args, kwargs = normalise_inputs(model, example_inputs, example_kwargs)
    if not isinstance(candidate, OnnxModel):
        return compare_float64(model, candidate, args, kwargs)
    batch = batch_size(args, kwargs)
    if batch is None or not candidate.batch_is_dynamic(model, args, kwargs):
        return compare_onnxruntime(model, candidate, example_sets(args, kwargs))
    other_batch = with_batch(args, kwargs, batch + 1, required=False)
    return compare_onnxruntime(model, candidate, [InputSet("example", args, kwargs), other_batch])


def _candidate(other: Any) -> nn.Module | OnnxModel:
    if isinstance(other, str | PathLike):
        return OnnxModel(other)
    if isinstance(other, nn.Module):
        return unwrap(other)
    kind = type(other).__name__
    raise InputError(f"other is of type {kind}; expected a torch.nn.Module or an ONNX path")


def compare_float64(
    model: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> EquivalenceReport:
    """Compare two modules on copies that work in float64 throughout, casts inside included.

    Passes if every floating-point output has max |other - model| / max |model| of at most
    `FLOAT64_TOLERANCE`, every integer output is equal, and both return the same names of tensors.
    Takes memory for one float64 copy at a time. See `TrueFloat64` for what is done about casts.

    Args:
        model: the reference; any mode, it is run in eval mode.
        other: a module that takes the same inputs.
        args: positional inputs, tensors of any shape and dtype among them.
        kwargs: keyword inputs.

    Raises:
        InputError: a model does not run in float64 on these inputs.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> compare_float64(net, net, (torch.ones(4, 3),), {}).max_rel
        0.0
    """
    sets = example_sets(args, kwargs)
    (references,), sets, notes = usable_runs(model, sets, run_float64(model, sets))
    others = zip(sets, run_float64(other, sets), strict=True)
    candidates = [tensors_of("the other model", other, one, run) for one, run in others]
    outputs, structure = _judge(references, candidates)
    return EquivalenceReport(
        backend="pytorch-float64",
        outputs=outputs,
        inputs=tuple(one.label for one in sets),
        structure=structure,
        notes=(*notes, *_constant_outputs(sets, references)),
    )


def compare_onnxruntime(
    model: nn.Module, session: OnnxModel, sets: Sequence[InputSet]
) -> EquivalenceReport:
    """Compare an opened ONNX file with the module that it should compute, on sets of inputs.

    The tolerance of a floating-point output is `NOISE_MULTIPLE` times its noise floor: the largest
    error, over the sets, of the module's output in its own precision against float64, but at least
    `FLOOR_ULPS` units in the last place. Integer outputs have to be equal.

    Raises:
        InputError: the module does not run on a set that is required, or the file takes others.
        ExportError: onnxruntime fails.
    """
    for one in sets:  # refuse what the file does not take before anything is run
        session.feeds(model, one.args, one.kwargs)
    natives, wides = run_native(model, sets), run_float64(model, sets)
    (references, exact), kept, notes = usable_runs(model, sets, natives, wides)
    candidates = [session.run(session.feeds(model, one.args, one.kwargs)) for one in kept]
    outputs, structure = _judge(
        references,
        [_renamed(run, like) for run, like in zip(candidates, references, strict=True)],
        floors=_noise_floors(references, exact),
    )
    return EquivalenceReport(
        backend=f"onnxruntime-{_coarsest(references[0])}",
        outputs=outputs,
        inputs=tuple(one.label for one in kept),
        structure=structure,
        notes=(*notes, *_constant_outputs(kept, references)),
        path=str(session.path),
    )


def _is_float(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _constant_outputs(sets: Sequence[InputSet], runs: Sequence[Tensors]) -> list[str]:
    """Notes about outputs that do not depend on the inputs, and so prove little."""
    if len(sets) < 2 or same_start(sets[0], sets[1]):
        return []
    return [
        f"{name} is the same for different inputs, so that it says nothing about the weights "
        "before it; is the last layer zero?"
        for name, tensor in runs[0].items()
        if _is_float(tensor) and name in runs[1] and _same_first_row(tensor, runs[1][name])
    ]


def _same_first_row(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape == right.shape:
        return torch.equal(left, right)
    return torch.equal(left[:1], right[:1])


def _judge(
    references: Sequence[Tensors],
    candidates: Sequence[Tensors],
    floors: Mapping[str, float] | None = None,
) -> tuple[tuple[OutputFigures, ...], tuple[str, ...]]:
    """Figures per output over all sets, and differences of structure."""
    worst: dict[str, OutputFigures] = {}
    structure: dict[str, None] = {}  # in the order found, each once
    for reference, candidate in zip(references, candidates, strict=True):
        if reference.keys() != candidate.keys():
            structure[f"outputs {_listed(candidate)} instead of {_listed(reference)}"] = None
        for name in reference.keys() & candidate.keys():
            floor = None if floors is None else floors[name]
            tolerance = FLOAT64_TOLERANCE if floor is None else _tolerance(floor)
            figures = compare_tensors(
                name, reference[name], candidate[name], tolerance=tolerance, noise_floor=floor
            )
            worst[name] = worst[name].worst_of(figures) if name in worst else figures
    names = dict.fromkeys(name for reference in references for name in reference)
    return tuple(worst[name] for name in names if name in worst), tuple(structure)


def _listed(tensors: Tensors) -> str:
    return ", ".join(tensors) or "(no tensor)"


def _renamed(candidate: Tensors, reference: Tensors) -> Tensors:
    """Outputs of a file under the names of the module's: by position where the names differ."""
    if candidate.keys() == reference.keys() or len(candidate) != len(reference):
        return candidate
    return dict(zip(reference, candidate.values(), strict=True))


def _noise_floors(natives: Sequence[Tensors], wides: Sequence[Tensors]) -> dict[str, float]:
    floors: dict[str, float] = {}
    for native, wide in zip(natives, wides, strict=True):
        for name, tensor in native.items():
            comparable = name in wide and wide[name].shape == tensor.shape
            measured = relative_error(wide[name], tensor) if comparable else 0.0
            floors[name] = max(floors.get(name, 0.0), measured, _least_floor(tensor))
    return floors


def _tolerance(floor: float) -> float:
    return min(NOISE_MULTIPLE * floor, LARGEST_TOLERANCE)


def _least_floor(tensor: torch.Tensor) -> float:
    if not _is_float(tensor):
        return 0.0
    return max(FLOOR_ULPS * torch.finfo(tensor.dtype).eps, FLOAT64_TOLERANCE / NOISE_MULTIPLE)


def _coarsest(tensors: Tensors) -> str:
    """Name of the least precise floating-point dtype among the outputs."""
    dtypes = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    return str(coarsest).removeprefix("torch.")
