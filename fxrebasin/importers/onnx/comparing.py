"""Any two of a PyTorch model, an ONNX file and a state dict compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

from onnx import ModelProto
from torch import Tensor, nn

from fxrebasin.choices import choices_for
from fxrebasin.errors import InputError
from fxrebasin.exporters.verify import equivalence
from fxrebasin.exporters.verify.equivalence import ROWS, compare_float64
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.rounding import with_rounding_told
from fxrebasin.importers.onnx.finding import made_inputs
from fxrebasin.importers.onnx.loading import OnnxSource, read
from fxrebasin.importers.onnx.ports import with_ports_of
from fxrebasin.importers.onnx.running import check_interpreter, dynamic_batch, on_disk
from fxrebasin.importers.onnx.stored import compare_state
from fxrebasin.importers.onnx.tensors import bytes_of
from fxrebasin.models.checks import unwrap
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.reports.equivalence import EquivalenceReport, OutputFigures
from fxrebasin.running.outputs import Outputs
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.wording import listed

_LISTED = 8


@in_own_surroundings
def verify(
    model: nn.Module | ModelProto | str | PathLike[str],
    other: nn.Module | ModelProto | str | PathLike[str] | Mapping[str, Tensor],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> EquivalenceReport:
    """Compare what a model computes with what another one computes; either may be an ONNX file.

    Both are run on the example inputs, on a set with other values and another batch size, and on
    others with values far apart until there are 256 rows; fewer where a row takes long, and then
    `report.notes` says so; `report.rows` has the number. It is on more if the model chooses its way
    by values and has parameters that were not read yet (see
    `fxrebasin.exporters.verify.references`). What the model does not take is left out;
    `report.notes` says so, and which parameters no run read, and which units no row showed.

    Two modules are compared in float64 with a tolerance of 1e-10, and so are two ONNX files, by
    an interpreter of their graphs that is held against onnxruntime first. A module and a file are
    compared in the module's own precision, the file being run on onnxruntime's CPU provider; the
    tolerance is ten times the noise floor, the error that the module itself has in its own
    precision against float64. A file with a fixed batch gets sets of that size. Nothing is
    modified.

    Args:
        model: a module, which is run in eval mode, or the path of an ONNX file, or such a model
            in memory. The reference is the module, if one of the two is a file.
        other: another one that takes the same inputs. For a file also a state dict: then what the
            file stores under its names is compared bit for bit, and nothing is run.
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
        CheckpointError: a file is missing or is not an ONNX model.
        ExportError: onnxruntime cannot run a file.
        EquivalenceError: the interpreter does not compute what onnxruntime does.

    Example:
        >>> import torch
        >>> net = nn.Linear(3, 2)
        >>> verify(net, net, torch.randn(4, 3)).passed
        True
    """
    if isinstance(other, Mapping):
        if isinstance(model, nn.Module):
            raise InputError("other is a state dict; that can be compared with an ONNX file only")
        return _compare_stored(read(model), other)
    options: dict[str, Any] = {"state_buffers": state_buffers, "outputs": outputs}
    given: Any = (example_inputs, example_kwargs)
    module, file = (model, other) if isinstance(model, nn.Module) else (other, model)
    if isinstance(module, nn.Module) and isinstance(file, ModelProto):
        with on_disk(read(file)) as path:
            return replace(_compare_with_file(module, path, given, options), path=None)
    if isinstance(module, nn.Module) and isinstance(file, str | PathLike):
        return _compare_with_file(module, file, given, options)
    if isinstance(model, nn.Module) or isinstance(other, nn.Module):
        return equivalence.verify(cast(nn.Module, model), cast(nn.Module, other), *given, **options)
    given = example_kwargs if example_inputs is None else example_inputs
    return _compare_files(read(model), read(other), given, outputs)


def _compare_with_file(
    model: nn.Module, file: str | PathLike[str], given: Sequence[Any], options: Mapping[str, Any]
) -> EquivalenceReport:
    """What a module and a file compute, and what numbers they are made of."""
    report = equivalence.verify(model, file, *given, **options)
    stored = compare_state(Path(file), named_state(unwrap(model)))
    return replace(
        report,
        structure=(*report.structure, *stored.faults),
        notes=(*report.notes, *stored.notes),
    )


def _compare_files(
    one: OnnxSource, two: OnnxSource, example: Any, outputs: Outputs
) -> EquivalenceReport:
    alike = with_ports_of(two, one)
    if list(one.parsed.types) != list(alike.parsed.types):
        raise InputError(
            f"{one.label} has the inputs {', '.join(one.parsed.types)}, and {two.label} "
            f"{', '.join(two.parsed.types)}"
        )
    module, candidate = one.module(), alike.module()
    wanted = choices_for(module, outputs=outputs).outputs
    inputs = made_inputs(one, module, example)[0]
    args = tuple(inputs.values())
    given = dict(zip(one.parsed.types, args, strict=True))
    dynamic = True
    for source, runs in ((one, module), (two, two.module())):  # onnxruntime has the file's order
        own = tuple(given[name] for name in source.parsed.types)
        check_interpreter(source, runs, own, wanted)
        dynamic = dynamic and dynamic_batch(source, runs, own)
    report = compare_float64(module, candidate, args, {}, wanted, any_batch=dynamic, rows=ROWS)
    return with_rounding_told(report, module, candidate, args, {}, wanted)


def _compare_stored(source: OnnxSource, state: Mapping[str, Tensor]) -> EquivalenceReport:
    """What a file stores, and a state dict, bit for bit."""
    tensors = source.parsed.tensors
    missing = [name for name in state if name not in tensors]
    structure = (f"{source.label} does not store {listed(missing, _LISTED)}",) if missing else ()
    figures = [_figures(name, state[name], tensors[name]) for name in state if name in tensors]
    return EquivalenceReport(
        backend="bits",
        outputs=tuple(figures),
        inputs=(),
        structure=structure,
        path=None if source.path is None else str(source.path),
    )


def _figures(name: str, wanted: Tensor, stored: Tensor) -> OutputFigures:
    found = compare_tensors(name, wanted, stored, tolerance=0.0)
    if wanted.dtype is not stored.dtype:
        fault = f"{stored.dtype} instead of {wanted.dtype}"
    elif wanted.shape == stored.shape and bytes_of(wanted.detach().cpu()) != bytes_of(stored):
        fault = "other bits"
    else:
        return found
    return replace(found, problems=(*found.problems, fault))
