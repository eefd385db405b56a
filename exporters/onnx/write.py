"""Make an ONNX file with torch's exporter: quiet, named after the model, and well-formed."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

import onnx
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

from fxrebasin.errors import ExportError
from fxrebasin.exporters.onnx.names import BATCH_NAME, tidy
from fxrebasin.exporters.verify.input_names import named_inputs
from fxrebasin.exporters.verify.input_sets import InputSet, is_batched
from fxrebasin.exporters.verify.runs import call_quietly
from fxrebasin.passes.trace.exported import trusted_distributions
from fxrebasin.running.given import Given
from fxrebasin.running.messages import first_lines
from fxrebasin.running.outputs import Wanted, counted, reduced
from fxrebasin.running.preserve import preserve

# A protobuf message holds less than 2 GiB, and the graph itself takes some of that.
EMBEDDED_BYTES = 1_800_000_000

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


def data_name(path: Path) -> str:
    """Name of the file beside `path` that holds the weights if there are too many.

    Example:
        >>> data_name(Path("models/net.onnx"))
        'net.onnx.data'
    """
    return f"{path.name}.data"


def write_onnx(
    model: nn.Module,
    path: Path,
    inputs: InputSet,
    *,
    batch: int | None = None,
    opset: int | None = None,
    optimize: bool = True,
    wanted: Wanted = None,
) -> None:
    """Export with torch's exporter, name everything, write the file and check it; print nothing.

    Args:
        model: left as it was; exported in eval mode.
        path: where to write; weights beyond `EMBEDDED_BYTES` go to a second file beside it.
        inputs: the call to export.
        batch: size, in these inputs, of the axis to be dynamic (the first axis of every tensor
            that has this size there); None for no dynamic axis.
        opset: version of the operator set; the exporter's default when left out.
        optimize: run onnxscript's optimizer.
        wanted: which outputs the file has; see `fxrebasin.running.outputs`.

    Raises:
        ExportError: the exporter or `onnx.checker` refuses.
    """
    outputs: list[str] = []

    def record(names: list[str]) -> None:  # from outside the module: torch.export guards its state
        outputs[:] = names

    flat = _Flat(model, inputs, wanted, record)
    tensors = flat.tensors()
    axis = torch.export.Dim(BATCH_NAME)
    shapes = [{0: axis} if batch and is_batched(tensor, batch) else {} for tensor in tensors]
    try:
        # the mode that watches writes for `preserve` knows no loops; export writes to fake tensors
        with preserve(model), _disable_current_modes(), trusted_distributions(), _quiet():
            program = torch.onnx.export(
                flat,
                tensors,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                optimize=optimize,
                dynamic_shapes=(tuple(shapes),) if batch else None,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot export {type(model).__name__}: {_root(error)}"
        ) from error
    if program is None or not outputs:
        raise ExportError(f"{type(model).__name__} returns no tensor")
    names = list(named_inputs(model, inputs.args, inputs.kwargs))
    _check_ports(program, names, outputs)
    tidy(program.model, inputs=names, outputs=outputs, scope="model.", batch=batch is not None)
    _save(program, path, model, opset)


class _Flat(nn.Module):
    """The model as a function from a tuple of tensors to a tuple of tensors.

    Keyword inputs, inputs that are not tensors, and returned dataclasses, caches, numbers and None
    are each too much for torch's exporter in some combination.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: InputSet,
        wanted: Wanted,
        record: Callable[[list[str]], None],
    ) -> None:
        super().__init__()
        self.model = model
        self.training = False  # `eval()` would also be called on the model
        self._leaves, self._spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
        self._wanted, self._record = wanted, record

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The inputs, each a copy: torch.export takes a tensor that comes twice as one input."""
        return tuple(leaf.clone() for leaf in self._leaves if isinstance(leaf, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = iter(tensors)
        leaves = [next(inputs) if isinstance(leaf, torch.Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        given = Given(args, kwargs)
        returned = reduced(self.model, call_quietly(self.model, args, kwargs), self._wanted)
        outputs = counted(returned, self._wanted, given)
        self._record(list(outputs))
        return tuple(outputs.values())


def _check_ports(
    program: torch.onnx.ONNXProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    graph = program.model.graph
    if (len(graph.inputs), len(graph.outputs)) != (len(inputs), len(outputs)):
        raise ExportError(
            f"torch.onnx.export made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs "
            f"of the inputs {', '.join(inputs)} and the outputs {', '.join(outputs)}"
        )


def _save(program: torch.onnx.ONNXProgram, path: Path, model: nn.Module, opset: int | None) -> None:
    written = program.model.opset_imports.get("")
    if opset not in (None, written):
        raise ExportError(f"the model needs opset {written}; opset {opset} was asked for")
    initializers = program.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in initializers if value.const_value is not None)
    program.save(path, external_data=size > EMBEDDED_BYTES)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"onnx.checker refuses the exported {type(model).__name__}: {first_lines(error)}"
        ) from error


def _root(error: BaseException) -> str:
    """The first line of the exception behind it; torch wraps that in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_lines(error, 1)


class _Mute:
    """Drops what its own thread writes; other threads (a progress bar's) go on writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        muted = threading.get_ident() == self._thread
        return len(text) if muted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines off the user's terminal."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        out, err = cast(TextIO, _Mute(sys.stdout)), cast(TextIO, _Mute(sys.stderr))
        with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
