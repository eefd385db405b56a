"""Reading files: what is there, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto
from onnx.serialization import registry
from torch import Tensor

from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.exporters.onnx.wire import Extent, with_data_left
from fxrebasin.importers.onnx.dtypes import DTYPES
from fxrebasin.importers.onnx.foreign import Unknown, is_random
from fxrebasin.importers.onnx.graph import Parsed, parse, stored_tensors
from fxrebasin.importers.onnx.module import AtSeveralSizes, OnnxModule
from fxrebasin.importers.onnx.roles import state_of, weights_of
from fxrebasin.importers.onnx.sharing import split
from fxrebasin.importers.onnx.tensors import is_external, size_of
from fxrebasin.running.messages import first_lines
from fxrebasin.wording import listed

Source: TypeAlias = str | PathLike[str] | ModelProto
"""The path of a file, or a model in memory."""

OLDEST_OPSET = 7
_LARGE = 1024  # bytes of an initializer
_LISTED = 8

_QUANTISED_KINDS = (
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
    *("QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulNBits", "MatMulBnb4"),
    *("QAttention", "QGemm", "QEmbedLayerNormalization", "QOrderedMatMul", "QMoE"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"),
    *("ConvIntegerToFloat", "GatherBlockQuantized", "DequantizeBFP", "QuantizeBFP"),
)
_QUANTISED_TYPES = (
    *(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2),
    *(TensorProto.FLOAT8E5M2FNUZ, TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1),
    *(TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2),
)


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """A model that was read and can be computed.

    Args:
        label: what messages call it.
        path: of the file; None for a model in memory.
        proto: as it is in the file; data that are in files of their own are not in it, nor are
            those of large initializers, which have empty ones instead.
        parsed: its graph and tensors, of which each use has its own.
        state: names of the tensors that are weights.
    """

    label: str
    path: Path | None
    proto: ModelProto
    parsed: Parsed
    state: tuple[str, ...]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that are weights, by name."""
        return {name: self.parsed.tensors[name] for name in self.state}

    def module(
        self,
        constants: tuple[str, ...] = (),
        unknown: Unknown = Unknown.COMPUTED,
    ) -> OnnxModule:
        """The graph as a module.

        Args:
            constants: names of weights that are taken for constants.
            unknown: what becomes of operators that are not computed here.
        """
        return OnnxModule(self.parsed, set(self.state) - set(constants), unknown)

    def joined(self, like: OnnxModule, together: Mapping[str, str]) -> OnnxModule:
        """A module with the same weights, of which some are one.

        Args:
            like: the module.
            together: see `OnnxModule`.
        """
        return OnnxModule(self.parsed, _weights_of(like), like.unknown, together)

    def at_several_sizes(self, like: OnnxModule) -> AtSeveralSizes:
        """The graph as a module that is run on several sets of inputs at once.

        Args:
            like: has the same weights, and does the same with operators that are not known.
        """
        return AtSeveralSizes(self.parsed, _weights_of(like), like.unknown, like.together)


def _weights_of(module: OnnxModule) -> set[str]:
    """Names in the file of what is a parameter of a module."""
    named = module.named_parameters(remove_duplicate=False)
    return {module.file_names[name] for name, _ in named}


def read(source: Source, label: str = "", *, mapped: bool = False) -> OnnxSource:
    """Read a model, and refuse what cannot be computed.

    Args:
        source: the path of a file, or a model.
        label: what messages call it; its path when left out.
        mapped: whether data in files of their own are mapped into memory, as they may be in files
            that were just written and that nobody else knows of.

    Raises:
        CheckpointError: there is no such file, it is no ONNX model or is not complete, or data
            that are in files of their own are missing or lie outside its folder.
        InputError: the graph is quantised, laid out for one machine, draws random numbers, or has
            types that are not known.
    """
    path = None if isinstance(source, ModelProto) else Path(source)
    label = label or (str(path) if path is not None else "the ONNX model")
    proto, places = (source, {}) if isinstance(source, ModelProto) else _load(Path(source))
    if not proto.graph.node and not proto.graph.output:
        raise CheckpointError(f"{label} holds no graph; it is empty, or not an ONNX model")
    try:
        _refuse_kinds(proto, label)
        folder = None if path is None else path.parent
        parsed = parse(proto, folder, mapped=mapped, places=places)
        _refuse_random(parsed, label)
    except (TypeError, UnicodeError) as error:  # protobuf gives bytes where a text is none
        raise CheckpointError(
            f"{label} is damaged: names or numbers in it are of other types than in any ONNX "
            f"model ({first_lines(error, 1)})"
        ) from error
    weights = [name for name in weights_of(parsed) if parsed.tensors[name].numel() > 1]
    parsed = split(parsed, weights)
    return OnnxSource(label, path, proto, parsed, state_of(parsed))


def _load(path: Path) -> tuple[ModelProto, dict[str, Extent]]:
    """A file, and where in it the data of large initializers are, which are not held twice so."""
    if not path.is_file():
        raise CheckpointError(f"there is no ONNX file at {path}")
    try:
        if is_text(path):
            return onnx.load(path, load_external_data=False), {}
        return with_data_left(path, _stays)
    except (DecodeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not an ONNX model that can be read: {error}. It may be cut off."
        ) from error


def is_text(path: Path) -> bool:
    """Whether onnx reads a file of this name as something else than bytes of protobuf.

    Args:
        path: of a file, which need not exist.
    """
    return registry.get_format_from_file_extension(path.suffix) not in (None, "protobuf")


def _stays(tensor: TensorProto, size: int) -> bool:
    """Whether an initializer is large, and has as many bytes as its shape needs."""
    dtype = DTYPES.get(tensor.data_type)
    if dtype is None or is_external(tensor) or size < _LARGE:
        return False
    return size == size_of(tensor) * dtype.itemsize


def _refuse_kinds(proto: ModelProto, label: str) -> None:
    """Refuse graphs that are known not to be for this."""
    version = max((item.version for item in proto.opset_import if not item.domain), default=0)
    if 0 < version < OLDEST_OPSET:
        raise InputError(
            f"{label} has opset {version}; those since {OLDEST_OPSET} are computed. Convert it "
            "with onnx.version_converter."
        )
    graphs = [proto.graph, *(function for function in proto.functions)]
    kinds: dict[str, None] = {}
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            if node.domain == "com.microsoft.nchwc":
                raise InputError(
                    f"{label} was optimised by onnxruntime for one kind of processor (weights in "
                    "the blocked layout com.microsoft.nchwc); pass the file that it was made from."
                )
            if node.op_type in _QUANTISED_KINDS or node.op_type.startswith("QLinear"):
                kinds.setdefault(node.op_type)
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    for _, tensor in stored_tensors(proto.graph):
        if tensor.data_type in _QUANTISED_TYPES:
            kinds.setdefault(TensorProto.DataType.Name(tensor.data_type))
    if kinds:
        raise InputError(
            f"{label} is quantised ({listed(list(kinds), _LISTED)}): its numbers are rounded with "
            "scales that belong to places. Re-base the model with whole weights, then quantise it."
        )


def _refuse_random(parsed: Parsed, label: str) -> None:
    found = dict.fromkeys(
        step.kind for _, step in parsed.graph.all_steps() if is_random(step.domain, step.kind)
    )
    if found:
        raise InputError(
            f"{label} draws random numbers ({listed(list(found), _LISTED)}): what it computes "
            "cannot be compared. Export the model for inference."
        )
