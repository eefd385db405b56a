"""Write a model as ONNX; the file appears only after it has been proved right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxrebasin.choices import choices_for
from fxrebasin.errors import CheckpointError, EquivalenceError, ExportError, InputError
from fxrebasin.exporters.onnx.write import EMBEDDED_BYTES, data_name, write_onnx
from fxrebasin.exporters.verify.equivalence import compare_onnxruntime
from fxrebasin.exporters.verify.input_sets import InputSet, batch_size, example_set, with_batch
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.references import References, reference_runs
from fxrebasin.exporters.verify.runs import Subject
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.models.example_inputs import check_outputs, normalise_inputs
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.messages import describe_call, first_lines
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.storage.files import replacing
from fxrebasin.wording import spoken

_OLDEST_OPSET = 18  # what torch's exporter writes natively
_TRACED_BATCH = 2  # torch.export treats an axis of size 1 as a constant
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


def export_onnx(
    model: nn.Module,
    path: str | PathLike[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    opset: int | None = None,
    dynamic_batch: bool = True,
    optimize: bool = True,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> EquivalenceReport:
    """Write `model` as an ONNX file that has been checked and run on onnxruntime first.

    The file is made beside its destination, checked by `onnx.checker`, run on onnxruntime's CPU
    provider, compared with PyTorch as `fxrebasin.verify` does, and only then renamed. If anything
    fails there is no file, and an earlier file at that place stays as it was. Inputs are named
    after the parameters of `forward`, outputs after their place in what it returns, initializers as
    in the `state_dict`. Weights beyond 1.8 GB go to `<path>.data`, which has to stay beside the
    file.

    The batch axis (the first axis of the first input, and that of every input of the same length)
    is dynamic, which is checked by running a second batch size. If the model's graph works for one
    size only, the batch is fixed and `report.notes` says why.

    Args:
        model: any module or GraphModule; it is exported in eval mode and left as it was.
        path: where to write; the directory has to exist.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name. Inputs that are not tensors become constants.
        overwrite: replace a file that exists.
        opset: version of the ONNX operator set; torch's default when left out.
        dynamic_batch: False fixes the batch size to that of the example inputs.
        optimize: simplify the graph (onnxscript's optimizer), which folds BatchNorm into the
            layer before it. False keeps every parameter as it is, and is faster; onnxruntime
            simplifies at load in either case.
        state_buffers: as for `analyze`; checked to exist, and of no effect on a file.
        outputs: as for `analyze`; the file has just these.

    Returns:
        The report of the comparison, with `.path` and `.notes`.

    Raises:
        CheckpointError: the file exists, or cannot be written there; raised before any work.
        InputError: the model does not run on the example inputs, or the opset does not exist.
        ExportError: the model cannot be exported, the file checked, or onnxruntime run it.
        EquivalenceError: onnxruntime computes something other than PyTorch.

    Example:
        >>> export_onnx(nn.Linear(3, 2), "net.onnx", torch.randn(2, 3)).passed
        True
    """
    model = unwrap(model)
    target = _destination(model, path, overwrite)
    _check_opset(opset)
    check_usable(model)
    wanted = choices_for(model, state_buffers=state_buffers, outputs=outputs).outputs
    args, kwargs = normalise_inputs(model, example_inputs, example_kwargs)
    _check_inputs(model, args, kwargs)
    check_outputs(model, args, kwargs, wanted)
    try:
        with replacing(target, data_name(target)) as draft:  # the model last: it names its data
            report = _prove(
                _Job(model, args, kwargs, draft, opset, optimize, wanted), dynamic_batch
            )
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {first_lines(error)}") from error
    return replace(report, path=str(target))


def _destination(model: nn.Module, path: str | PathLike[str], overwrite: bool) -> Path:
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"{target} is a directory; name the ONNX file to write in it")
    if not target.parent.is_dir():
        raise CheckpointError(f"the directory {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise CheckpointError(f"the directory {target.parent} is not writable")
    names = [target.name]
    if sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers())) > EMBEDDED_BYTES:
        names.append(data_name(target))
    for name in names:
        if not overwrite and os.path.lexists(target.parent / name):
            raise CheckpointError(
                f"{target.parent / name} exists and is kept; "
                f"pass {spoken('overwrite=True', '--overwrite')} to replace it"
            )
    return target


def _check_opset(opset: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and opset not in range(_OLDEST_OPSET, newest + 1):
        raise InputError(f"opset is {opset!r}; expected {_OLDEST_OPSET} to {newest}, or None")


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    leaves = tree_leaves((args, dict(kwargs)))
    for leaf in leaves:
        if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)):
            raise InputError(
                f"an input of type {type(leaf).__name__} cannot be an input of an ONNX file; pass "
                "tensors (in tuples, lists and dicts), numbers, strings or None"
            )
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise InputError(
            f"no tensor among the inputs of {describe_call(model, args, kwargs)}; an ONNX file "
            "needs at least one"
        )


@dataclass(frozen=True)
class _Job:
    """What to export, with which inputs, and where to."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    draft: Path
    opset: int | None
    optimize: bool
    wanted: Wanted

    @property
    def subject(self) -> Subject:
        """What the file is compared with."""
        return Subject(self.model, wanted=self.wanted)


def _prove(job: _Job, dynamic_batch: bool) -> EquivalenceReport:
    """Export, check and compare; with a dynamic batch if that is wanted and works."""
    batch = batch_size(job.args, job.kwargs)
    if not dynamic_batch or batch is None:
        return _prove_fixed(job)
    try:
        return _prove_dynamic(job, batch)
    except (EquivalenceError, ExportError, InputError) as error:
        reason = str(error).splitlines()[0]
    report = _prove_fixed(job)
    return replace(report, notes=(*report.notes, f"the batch is fixed at {batch}: {reason}"))


def _prove_fixed(job: _Job) -> EquivalenceReport:
    _write_draft(job, example_set(job.args, job.kwargs), batch=None)
    references = reference_runs(job.subject, job.args, job.kwargs, any_batch=False)
    return _compare(_open(job), references)


def _prove_dynamic(job: _Job, batch: int) -> EquivalenceReport:
    inputs = example_set(job.args, job.kwargs)
    if batch < _TRACED_BATCH:
        inputs = with_batch(inputs, _TRACED_BATCH, required=True)
    _write_draft(job, inputs, batch=max(batch, _TRACED_BATCH))
    session = _open(job)
    if not session.batch_is_dynamic(job.model, job.args, job.kwargs):
        raise ExportError("the graph of the model is specialised to one batch size")
    references = reference_runs(job.subject, job.args, job.kwargs)
    if not references.other_batch:
        raise InputError("; ".join(references.notes))
    return _compare(session, references)


def _write_draft(job: _Job, inputs: InputSet, batch: int | None) -> None:
    write_onnx(
        job.model,
        job.draft,
        inputs,
        batch=batch,
        opset=job.opset,
        optimize=job.optimize,
        wanted=job.wanted,
    )


def _open(job: _Job) -> OnnxModel:
    try:
        return OnnxModel(job.draft, "the exported model")
    except CheckpointError as error:  # not a file of the user's
        raise ExportError(f"onnxruntime refuses what was exported: {error}") from error


def _compare(session: OnnxModel, references: References) -> EquivalenceReport:
    report = compare_onnxruntime(session, references)
    report.raise_if_failed()
    return report
