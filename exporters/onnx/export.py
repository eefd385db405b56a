"""Write a model as ONNX; the file appears only after it was checked and run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxrebasin.choices import choices_for
from fxrebasin.errors import CheckpointError, EquivalenceError, ExportError, InputError
from fxrebasin.exporters.onnx.axes import (
    BATCH,
    Dynamic,
    axes_of_graph,
    batch_axes,
    chosen_axes,
    found_axes,
    is_whole,
    joined,
    labels_of,
    sizes_of,
    usual_label,
    without,
)
from fxrebasin.exporters.onnx.capture import Axes, Captured, capture
from fxrebasin.exporters.onnx.decoder import with_state_of
from fxrebasin.exporters.onnx.formulas import MOST_PARTS
from fxrebasin.exporters.onnx.handed import handed_on
from fxrebasin.exporters.onnx.metadata import origin_of
from fxrebasin.exporters.onnx.names import names_in_file
from fxrebasin.exporters.onnx.past import FIRST, Past, with_cache
from fxrebasin.exporters.onnx.sizes import Sizes
from fxrebasin.exporters.onnx.state import folding_notes, state_bytes, state_of
from fxrebasin.exporters.onnx.write import twin_path, write_onnx
from fxrebasin.exporters.verify.equivalence import compare_onnxruntime
from fxrebasin.exporters.verify.input_sets import InputSet, example_set, with_sizes
from fxrebasin.exporters.verify.onnx_session import OnnxModel, check_name
from fxrebasin.exporters.verify.references import References, native_runs
from fxrebasin.exporters.verify.runs import Subject
from fxrebasin.models.checks import check_usable, unwrap
from fxrebasin.models.example_inputs import check_outputs, normalise_inputs
from fxrebasin.models.input_names import named_inputs
from fxrebasin.passes.trace.made_for import made_for, note_sizes_of
from fxrebasin.reports.equivalence import EquivalenceReport
from fxrebasin.running.messages import attempt, describe_call, first_lines
from fxrebasin.running.outputs import Outputs, Wanted
from fxrebasin.running.own_structure import own_structure
from fxrebasin.running.surroundings import in_own_surroundings
from fxrebasin.storage.files import replacing
from fxrebasin.wording import spoken

_OLDEST_OPSET = 18  # what torch's exporter writes natively
_NOT_MADE_FOR = "the graph was made for this size; export the model that it was made of"
_LEAST_TRACED = 2  # an axis of size 1 may be one along which values are repeated
_LAID_OUT_BYTES = 1 << 24  # of weights, up to which it does not matter that onnxruntime copies them
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


@in_own_surroundings
def export_onnx(
    model: nn.Module,
    path: str | PathLike[str],
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic: Dynamic | None = None,
    with_past: bool | Past | nn.Module = False,
    optimize: bool = False,
    state_buffers: Sequence[str] = (),
    outputs: Outputs = None,
) -> EquivalenceReport:
    """Write `model` as an ONNX file that has been checked and run on onnxruntime first.

    The file is made beside its destination, checked by `onnx.checker`, run on onnxruntime's CPU
    provider, compared with PyTorch as `fxrebasin.verify` does, and only then renamed. If anything
    fails there is no file, and an earlier file at that place stays as it was. Inputs are named
    after the parameters of `forward`, outputs after their place in what it returns, initializers as
    in the `state_dict`. Weights beyond 1.8 GB go to `<path>.<their digest>.data`, which has to stay
    beside the file, and is removed when `overwrite` puts another model in the file's place.

    Every parameter is an initializer under its name, bit for bit, also one that has two names or
    that no operator reads; buffers that operators read are, too. This is checked on the file. (A
    parameter with the name of an input gets `_1` after it.)

    Axes that may have another size are dynamic where PyTorch can prove it: the batch, the length of
    sequences and sounds, the size of images. Each is checked by running other sizes. Where an axis
    is fixed although the model takes other sizes, `report.notes` says why in PyTorch's words. Sizes
    of images are fixed where PyTorch's formulas of them grow beyond all bounds (images padded to
    whole windows, stage after stage, may take it hours), unless `dynamic` asks for them.

    Args:
        model: any module or GraphModule; it is exported in eval mode and left as it was.
        path: where to write; the directory has to exist.
        example_inputs: a tensor, or a tuple of positional inputs; inferred when left out.
        example_kwargs: keyword inputs by name. Inputs that are not tensors become constants.
        overwrite: replace a file that exists.
        opset: version of the ONNX operator set; torch's default when left out.
        dynamic_batch: False fixes the sizes of all axes to those of the example inputs.
        dynamic: labels of the axes that have to be dynamic, by input: by the place of an axis, or
            one (or None) for each axis in order. Axes with one label have one size. Found when left
            out. `parse_dynamic` reads the form of the command line.
        with_past: for a decoder of transformers: its cache of keys and values is an input and an
            output, under the names that optimum writes, so that onnxruntime generates text. Of an
            encoder-decoder this is the decoder's step after the first; "first" is the first, from
            what the encoder returns. For a graph that `transform` made: the model that it was made
            of, since the graph has no cache.
        optimize: run onnxscript's optimizer, which folds parameters into others, such as BatchNorm
            into the layer before it; `report.notes` says what it folded. It makes no file faster on
            onnxruntime, which simplifies at load.
        state_buffers: as for `analyze`; checked to exist, and of no effect on a file.
        outputs: as for `analyze`; the file has just these.

    Returns:
        The report of the comparison, with `.path` and `.notes`.

    Raises:
        CheckpointError: the file exists, or cannot be written there; raised before any work.
        InputError: the model does not run on the example inputs, or there is no such opset or axis.
        ExportError: the model cannot be exported, with the axes asked for if any are; the file
            cannot be checked, or onnxruntime cannot run it.
        EquivalenceError: onnxruntime computes something other than PyTorch.

    Example:
        >>> export_onnx(nn.Linear(3, 2), "net.onnx", torch.randn(2, 3)).passed
        True
    """
    given = unwrap(model)
    model = own_structure(given)
    note_sizes_of(model, given)
    target = _destination(path, overwrite)
    _check_opset(opset)
    check_usable(model)
    wanted = choices_for(model, state_buffers=state_buffers, outputs=outputs).outputs
    args, kwargs = normalise_inputs(model, example_inputs, example_kwargs)
    _check_inputs(model, args, kwargs)
    further: tuple[InputSet, ...] = ()
    if with_past is not False:
        _check_past(with_past)
        if dynamic is not None:
            raise InputError("with_past says itself which axes are dynamic; leave out dynamic=")
        if isinstance(with_past, nn.Module):
            model = with_state_of(model, own_structure(unwrap(with_past)), args, kwargs)
        step: bool | Past = with_past if isinstance(with_past, str) else True
        decoder = with_cache(model, named_inputs(model, args, kwargs), step)
        model, args, kwargs = decoder.model, (), dict(decoder.kwargs)
        dynamic, further = decoder.axes, decoder.further
    check_outputs(model, args, kwargs, wanted)
    try:
        with replacing(target, overwrite=overwrite) as draft:
            job = _Job(model, args, kwargs, draft, opset, optimize, wanted, further)
            report = _prove(job, dynamic, dynamic_batch)
            twin_path(draft).unlink(missing_ok=True)  # what is beside the file appears with it
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {first_lines(error)}") from error
    return replace(report, path=str(target))


def _destination(path: str | PathLike[str], overwrite: bool) -> Path:
    target = Path(path)
    check_name(target)
    if target.is_dir():
        raise CheckpointError(f"{target} is a directory; name the ONNX file to write in it")
    if not target.parent.is_dir():
        raise CheckpointError(f"the directory {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise CheckpointError(f"the directory {target.parent} is not writable")
    if not overwrite and os.path.lexists(target):
        raise CheckpointError(
            f"{target} exists and is kept; "
            f"pass {spoken('overwrite=True', '--overwrite')} to replace it"
        )
    return target


def _check_past(with_past: Any) -> None:
    if with_past not in (True, FIRST) and not isinstance(with_past, nn.Module):
        raise InputError(
            f"with_past is {with_past!r}; expected True, {FIRST!r}, or the model that a graph was "
            "made of"
        )


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
    further: tuple[InputSet, ...]

    @property
    def subject(self) -> Subject:
        """What the file is compared with."""
        return Subject(self.model, wanted=self.wanted)

    @property
    def example(self) -> InputSet:
        """The inputs that were given."""
        return example_set(self.args, self.kwargs)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The inputs of the file."""
        return named_inputs(self.model, self.args, self.kwargs)


def _prove(job: _Job, dynamic: Dynamic | None, dynamic_batch: bool) -> EquivalenceReport:
    """Export, check and compare, with as many dynamic axes as work or with those asked for."""
    if dynamic is not None:
        chosen = chosen_axes(dynamic, job.tensors)
        _check_open(job, chosen)
        return _proved(job, chosen, as_asked=True)
    notes: list[str] = _closed(job) if dynamic_batch else []
    attempts = _attempts(job) if dynamic_batch else [{}]
    for axes, rest in zip(attempts, [*attempts[1:], None], strict=True):
        try:
            report = _proved(job, axes)
        except (EquivalenceError, ExportError, InputError) as error:
            if rest is None:
                raise
            lost = {
                label
                for label, places in labels_of(axes).items()
                if any(axis not in rest.get(name, {}) for name, axis in places)
            }
            reason = str(error).splitlines()[0]
            notes += [_fixed(job, axes, label, reason) for label in sorted(lost)]
        else:
            break
    return replace(report, notes=(*report.notes, *notes))


def _attempts(job: _Job) -> list[Axes]:
    """Axes to be left open: all that may be, with fewer labels, the batch, none.

    Those of a graph of torch.export are open in it. It may run on other sizes of the rest, but
    there it is not the model that it was made of.
    """
    made = made_for(job.model)
    if made is not None:
        found = axes_of_graph(made, job.example, job.tensors)
        batch = without(found, labels_of(found).keys() - {BATCH})
    else:
        found = found_axes(job.model, job.example, job.tensors, job.wanted)
        batch = batch_axes(job.example, job.tensors)
    attempts: list[Axes] = []
    for axes in (found, joined(found, job.tensors), batch, {}):
        if axes not in attempts:
            attempts.append(axes)
    return attempts


def _closed(job: _Job) -> list[str]:
    """Notes on the batch and on sequences of tokens that a graph of torch.export has not open."""
    made = made_for(job.model)
    if made is None:
        return []
    axes = axes_of_graph(made, job.example, job.tensors)
    batch = batch_axes(job.example, job.tensors)
    notes = []
    if BATCH in labels_of(batch) and BATCH not in labels_of(axes):
        reasons = [made.closed[name, 0] for name in batch if (name, 0) in made.closed]
        notes = [_fixed(job, batch, BATCH, (*reasons, _NOT_MADE_FOR)[0])]
    for (name, axis), reason in made.closed.items():
        tensor = job.tensors.get(name)
        if tensor is not None and axis not in batch.get(name, {}) and is_whole(tensor):
            label = usual_label(axis, tensor)
            notes.append(_fixed(job, {name: {axis: label}}, label, reason))
    return notes


def _check_open(job: _Job, axes: Axes) -> None:
    """Raise an `ExportError` if a graph of torch.export has not these axes open."""
    made = made_for(job.model)
    if made is None:
        return
    known: dict[str, str] = {}
    for label, places in labels_of(axes).items():
        for place in places:
            if place not in made.open:
                reason = made.closed.get(place, _NOT_MADE_FOR)
                raise ExportError(f"dynamic: {_fixed(job, axes, label, reason)}")
            other = known.setdefault(made.open[place], label)
            if other != label:
                raise ExportError(
                    f"dynamic: {other} and {label} are one size in this graph: give them one label"
                )


def _fixed(job: _Job, axes: Axes, label: str, reason: str) -> str:
    name, axis = labels_of(axes)[label][0]
    what = "the batch" if label == BATCH else f"{label} (axis {axis} of {name})"
    return f"{what} is fixed at {job.tensors[name].shape[axis]}: {reason}"


def _proved(job: _Job, axes: Axes, *, as_asked: bool = False) -> EquivalenceReport:
    """Export with open axes, check and compare; axes that PyTorch closes are so in the file.

    A graph that was made with just these axes open is not traced again, unless it does not hold.
    """
    handed: list[Captured | None] = []
    attempt(lambda: handed.append(handed_on(job.model, job.example, axes, job.wanted)))
    for program in filter(None, handed):
        with suppress(EquivalenceError, ExportError, InputError):
            return _proved_as(job, axes, program, {}, as_asked=as_asked)
    captured, closed = _captured(job, axes, None if as_asked else MOST_PARTS)
    return _proved_as(job, axes, captured, closed, as_asked=as_asked)


def _proved_as(
    job: _Job, axes: Axes, captured: Captured, closed: Mapping[str, str], *, as_asked: bool
) -> EquivalenceReport:
    """The same, as a program; `closed` has the axes that PyTorch closed, with its reasons."""
    notes = [_fixed(job, axes, label, reason) for label, reason in closed.items()]
    if notes and as_asked:
        raise ExportError(f"dynamic: {'; '.join(notes)}")
    open_axes = without(axes, closed)
    sizes = Sizes(job.subject, job.example, open_axes, captured)
    further = [replace(one, required=True) for one in job.further or sizes.sets()]
    write_onnx(
        job.model,
        job.draft,
        captured,
        opset=job.opset,
        optimize=job.optimize,
        metadata=_origin(job, open_axes, further),
    )
    names = names_in_file(state_of(job.model), captured.inputs)
    if job.optimize:
        notes += folding_notes(job.draft, job.model, names)
    references = native_runs(
        job.subject, job.args, job.kwargs, any_batch=sizes.any_batch, further=further
    )
    batches = {one.batch for one in references.sets}
    if sizes.any_batch and batches == {job.example.batch}:
        raise InputError("; ".join(references.notes))
    report = _compare(_open(job), references, sizes)
    return replace(report, notes=(*report.notes, *notes))


def _origin(job: _Job, axes: Axes, further: Sequence[InputSet]) -> dict[str, str]:
    chosen = "function" if callable(job.wanted) else job.wanted
    options = {
        "dynamic": {name: dict(places) for name, places in axes.items()},
        "opset": job.opset,
        "optimize": job.optimize,
        "outputs": chosen,
        "with_past": bool(job.further),
    }
    inputs = [named_inputs(job.model, one.args, one.kwargs) for one in (job.example, *further)]
    return origin_of(job.model, options, [sizes_of(axes, tensors) for tensors in inputs])


def _captured(job: _Job, axes: Axes, most_parts: int | None) -> tuple[Captured, dict[str, str]]:
    """The program, and labels of axes that PyTorch closed with its reasons.

    An axis of size 1 is traced with a larger size, unless PyTorch closes it then.
    """
    sizes = {label: _traced_size(job, axes, label) for label in labels_of(axes)}
    changed = {label: size for label, size in sizes.items() if size != _size(job, axes, label)}
    inputs = with_sizes(job.example, job.model, axes, changed) if changed else job.example
    captured = capture(job.model, inputs, axes, job.wanted, most_parts=most_parts)
    closed = dict(captured.closed)
    if closed.keys() & changed.keys():
        captured, more = _captured(job, without(axes, closed), most_parts)
        closed.update(more)
    return captured, closed


def _size(job: _Job, axes: Axes, label: str) -> int:
    name, axis = labels_of(axes)[label][0]
    return int(job.tensors[name].shape[axis])


def _traced_size(job: _Job, axes: Axes, label: str) -> int:
    return max(_size(job, axes, label), _LEAST_TRACED)


def _open(job: _Job) -> OnnxModel:
    """The file on onnxruntime; one with many weights by its twin, since else it reads them twice.

    The twin was made from what is written, and its weights are there.
    """
    compact = state_bytes(job.model) > _LAID_OUT_BYTES
    twin = twin_path(job.draft)
    path = twin if compact and twin.exists() else job.draft
    try:
        return OnnxModel(path, "the exported model", compact=compact)
    except CheckpointError as error:  # not a file of the user's
        raise ExportError(f"onnxruntime refuses what was exported: {error}") from error


def _compare(session: OnnxModel, references: References, sizes: Sizes) -> EquivalenceReport:
    session.check_open(sizes.axes)
    try:
        report = compare_onnxruntime(session, references)
        report.raise_if_failed()
    except (EquivalenceError, ExportError) as error:
        if not sizes.objections:
            raise
        reasons = "; ".join(dict.fromkeys(sizes.objections))
        raise type(error)(f"{reasons}; {error}") from error
    return report
