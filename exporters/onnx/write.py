"""Make an ONNX file of a captured model: named after the model, with its state, and well-formed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import OutputFixPass, RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from fxrebasin.errors import ExportError
from fxrebasin.exporters.onnx.capture import SCOPE, Captured, root_cause
from fxrebasin.exporters.onnx.lower import lowered_first
from fxrebasin.exporters.onnx.names import names_in_file, tidy
from fxrebasin.exporters.onnx.quiet import quiet
from fxrebasin.exporters.onnx.recurrent import translations
from fxrebasin.exporters.onnx.state import add_unread, check_state, state_of
from fxrebasin.exporters.onnx.wire import (
    Weight,
    with_data_elsewhere,
    with_data_outside,
    write_data,
    write_embedded,
)
from fxrebasin.passes.trace.recurrent import whole_recurrent_layers
from fxrebasin.running.messages import first_lines
from fxrebasin.storage.content_names import outdated

# A protobuf message holds less than 2 GiB, and the graph itself takes some of that.
EMBEDDED_BYTES = 1_800_000_000

# Weights below this stay in the graph in any case: shapes are among them, which checkers read.
_SMALL_BYTES = 1024


def twin_path(path: Path) -> Path:
    """Place of the twin of a file with embedded weights: small, and it finds them in that file."""
    return path.with_name(f"{path.name}.twin")


def write_onnx(
    model: nn.Module,
    path: Path,
    captured: Captured,
    *,
    opset: int | None = None,
    optimize: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Translate a captured model, name everything, write the file and check it; print nothing.

    Args:
        model: what was captured; left as it was.
        path: where to write; weights beyond `EMBEDDED_BYTES` go to a second file beside it,
            which has a name of its content. Otherwise there is a twin beside it then: see
            `twin_path`.
        captured: the model as a program.
        opset: version of the operator set; the exporter's default when left out.
        optimize: run onnxscript's optimizer, which folds parameters into others. Otherwise the
            file has every parameter, and this is checked bit for bit.
        metadata: entries of the file's `metadata_props`.

    Raises:
        ExportError: the exporter or `onnx.checker` refuses, or the file has not the model's state.
    """
    translated = _translated(model, captured, opset, optimize)
    graph = translated.graph
    if (len(graph.inputs), len(graph.outputs)) != (len(captured.inputs), len(captured.outputs)):
        raise ExportError(
            f"torch.onnx.export made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs "
            f"of the inputs {', '.join(captured.inputs)} and the outputs "
            f"{', '.join(captured.outputs)}"
        )
    names = names_in_file(state_of(model), captured.inputs)
    scoped = {SCOPE + name: new for name, new in names.items()}
    if not optimize:
        _simplify(translated, set(scoped))
    tidy(
        translated,
        inputs=captured.inputs,
        outputs=captured.outputs,
        state=scoped,
        axes={str(symbol): label for symbol, label in captured.labels.items()},
    )
    if not optimize:
        add_unread(graph, model, names)
    translated.metadata_props.update(metadata or {})
    _check_opset(translated, opset)
    _save(translated, path, type(model).__name__)
    if not optimize:
        check_state(path, model, names)


def _translated(
    model: nn.Module, captured: Captured, opset: int | None, optimize: bool
) -> ir.Model:
    try:
        with quiet(), torch.no_grad(), whole_recurrent_layers():
            program = torch.onnx.export(
                lowered_first(captured.program),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                optimize=optimize,
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot export {type(model).__name__}: {root_cause(error)}"
        ) from error
    if program is None:
        raise ExportError(f"torch.onnx.export makes nothing of {type(model).__name__}")
    return program.model


def _simplify(model: ir.Model, state: set[str]) -> None:
    """Compute in advance what depends on nothing, but leave everything alone that is state."""

    def may_fold(node: ir.Node) -> bool | None:
        return False if any(one is not None and one.name in state for one in node.inputs) else None

    with quiet():
        onnxscript.optimizer.inline(model)
        onnxscript.optimizer.fold_constants_ir(model, should_fold=may_fold)
        RemoveUnusedNodesPass()(model)
        OutputFixPass()(model)  # a weight that is returned keeps its own name


def _check_opset(model: ir.Model, opset: int | None) -> None:
    written = model.opset_imports.get("")
    if opset not in (None, written):
        raise ExportError(f"the model needs opset {written}; opset {opset} was asked for")


def _save(model: ir.Model, path: Path, label: str) -> None:
    """Write the file, and have a small twin checked that has its weights in that file."""
    weights = [_weight(value) for value in model.graph.initializers.values()]
    model.graph.initializers.clear()
    graph = ir.serde.serialize_model(model)
    if sum(weight.size for weight in weights) > EMBEDDED_BYTES:
        large = [weight for weight in weights if weight.size >= _SMALL_BYTES]
        for earlier in outdated(path, ()):
            earlier.unlink()
        places = write_data(large, path)
        onnx.save(with_data_elsewhere(graph, weights, places), path)
        _check(path, label)
        return
    write_embedded(graph, weights, path)
    twin = twin_path(path)
    onnx.save(with_data_outside(path, _SMALL_BYTES), twin)
    _check(twin, label)


def _check(path: Path, label: str) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"onnx.checker refuses the exported {label}: {first_lines(error)}"
        ) from error


def _weight(value: ir.Value) -> Weight:
    tensor = value.const_value
    if tensor is None:
        raise ExportError(f"torch.onnx.export left {value.name} without a value")
    header = onnx.TensorProto(
        name=value.name, dims=tensor.shape.numpy(), data_type=tensor.dtype.value
    )
    raw = _behind(tensor)
    if raw is None:
        return Weight(header, tensor.nbytes, tensor.tobytes)
    identity = raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride()
    in_memory = raw.is_cpu and raw.is_contiguous() and raw.nbytes == tensor.nbytes > 0
    data: Callable[[], bytes | memoryview] = partial(_view_of, raw) if in_memory else tensor.tobytes
    return Weight(header, tensor.nbytes, data, identity)


def _behind(tensor: ir.TensorProtocol) -> torch.Tensor | None:
    """The tensor of PyTorch that holds the numbers, if there is one."""
    raw = tensor.raw if isinstance(tensor, ir.Tensor | TorchTensor) else None
    return raw if isinstance(raw, torch.Tensor) and raw.layout == torch.strided else None


def _view_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor where they are."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    bytes_of: Any = flat.view(torch.uint8).numpy()
    return memoryview(bytes_of)
