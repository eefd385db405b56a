"""The interpreter held against onnxruntime, before anything rests on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fxrebasin.errors import EquivalenceError, ExportError, InputError
from fxrebasin.exporters.verify.equivalence import compare_onnxruntime
from fxrebasin.exporters.verify.onnx_session import OnnxModel
from fxrebasin.exporters.verify.references import References, reference_runs
from fxrebasin.exporters.verify.runs import Subject
from fxrebasin.importers.onnx.foreign import CannotRunError
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.running.outputs import Wanted


@contextmanager
def on_disk(source: OnnxSource) -> Iterator[Path]:
    """The path of a model, which is written for the while if it was given in memory."""
    if source.path is not None:
        yield source.path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(source.proto.SerializeToString())
        yield path


def dynamic_batch(source: OnnxSource, module: OnnxModule, args: Sequence[Tensor]) -> bool:
    """Whether a file takes batches of any size.

    Args:
        source: the file.
        module: its graph.
        args: inputs in the order of the file.
    """
    with on_disk(source) as path:
        return OnnxModel(path, source.label, optimized=False).batch_is_dynamic(module, args, {})


def check_interpreter(
    source: OnnxSource, module: OnnxModule, args: Sequence[Tensor], wanted: Wanted = None
) -> References:
    """Make sure that the interpreter computes what onnxruntime does, up to rounding.

    Args:
        source: the file.
        module: its graph.
        args: inputs in the order of the file.
        wanted: which outputs count; see `fxrebasin.running.outputs`.

    Returns:
        What the graph returns in float64, on the inputs and on others.

    Raises:
        InputError: an operator is computed neither here nor by onnxruntime.
        EquivalenceError: it does not.
        ExportError: onnxruntime cannot run the file.
    """
    _refuse_what_nothing_runs(source, module, args)
    with on_disk(source) as path:
        session = OnnxModel(path, source.label, optimized=False)
        dynamic = session.batch_is_dynamic(module, args, {})
        subject = Subject(module, label=source.label, wanted=wanted)
        references = reference_runs(subject, tuple(args), {}, any_batch=dynamic, little_memory=True)
        report = compare_onnxruntime(session, references)
    if not report.passed:
        raise EquivalenceError(
            f"the interpreter of ONNX graphs computes something else of {source.label} than "
            f"onnxruntime: {report}\n{report.table()}\nNothing was written. This is a fault of "
            "fxrebasin; please report it with the file."
        )
    return references


def _refuse_what_nothing_runs(
    source: OnnxSource, module: OnnxModule, args: Sequence[Tensor]
) -> None:
    if all(step.operator is not None for _, step in source.parsed.graph.all_steps()):
        return
    try:
        with torch.no_grad():
            module(*(value.clone() for value in args))
        with on_disk(source) as path:
            OnnxModel(path, source.label, optimized=False)
    except (CannotRunError, ExportError) as error:
        raise InputError(f"nothing can be run of {source.label}: {error}") from error
