"""ONNX files on onnxruntime: open, feed, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as _state
from torch import nn

from fxrebasin.errors import CheckpointError, ExportError, InputError
from fxrebasin.exporters.verify.input_sets import batch_size
from fxrebasin.models.input_names import named_inputs
from fxrebasin.running.freed import give_back_memory
from fxrebasin.running.messages import attempt, describe, first_lines
from fxrebasin.wording import escaped

_FATAL = 4  # onnxruntime's log level; errors reach the caller as exceptions

_TYPES: Mapping[torch.dtype, str] = {
    torch.float64: "tensor(double)",
    torch.float32: "tensor(float)",
    torch.float16: "tensor(float16)",
    torch.int64: "tensor(int64)",
    torch.int32: "tensor(int32)",
    torch.int16: "tensor(int16)",
    torch.int8: "tensor(int8)",
    torch.uint8: "tensor(uint8)",
    torch.bool: "tensor(bool)",
}

_UNREADABLE = (
    *(_state.Fail, _state.InvalidArgument, _state.InvalidGraph),
    *(_state.InvalidProtobuf, _state.NoModel),
)

# What has onnxruntime compute weights of the file's: each is a copy, and another while it is made.
_MAKE_WEIGHTS = [
    *("ConstantFolding", "ConvBNFusion", "ConvMulFusion", "MatMul_BatchNormalization_Fusion"),
]

# onnxruntime's exceptions have no base class of their own.
ONNXRUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        kind
        for kind in vars(_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


def check_name(path: Path) -> None:
    """Refuse names that onnx and onnxruntime cannot be told.

    Args:
        path: of an ONNX file.

    Raises:
        InputError: it is no text in UTF-8.

    Example:
        >>> check_name(Path("model.onnx"))
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the name {escaped(path)} is not in UTF-8, and the libraries of ONNX take no other; "
            "give the file another name"
        ) from error


class OnnxModel:
    """An ONNX file opened on onnxruntime's CPU provider, quietly, with torch's thread count.

    Args:
        path: the file; its external data, if any, is looked for beside it.
        label: what messages call it; its path when left out.
        optimized: whether onnxruntime may rewrite the graph before it runs it.
        compact: keep it from laying out the weights of convolutions for the processor, for which
            it takes twice the memory of the weights on top, and from keeping transposed or packed
            weights beside the file's.

    Raises:
        CheckpointError: there is no such file, or it holds no well-formed ONNX model.
        ExportError: it is an ONNX model that onnxruntime cannot prepare.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        label: str | None = None,
        *,
        optimized: bool = True,
        compact: bool = False,
    ) -> None:
        self.path = Path(path)
        self._label = label or str(path)
        check_name(self.path)
        if not self.path.is_file():
            raise CheckpointError(f"there is no ONNX file at {self.path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = torch.get_num_threads()
        level = onnxruntime.GraphOptimizationLevel
        most = level.ORT_ENABLE_EXTENDED if compact else level.ORT_ENABLE_ALL
        if compact:  # weights are mapped from the file then, and not copied
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = most if optimized else level.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_MAKE_WEIGHTS if compact else None,
            )
        except ONNXRUNTIME_ERRORS as error:
            if isinstance(error, _UNREADABLE) and not _is_well_formed(self.path):
                raise CheckpointError(
                    f"{self._label} is not an ONNX model that can be read: {first_lines(error)}"
                ) from error
            raise ExportError(
                f"onnxruntime cannot prepare {self._label}: {first_lines(error)}\n"
                "Its CPU provider lacks operators for bfloat16 and some for float16; if the model "
                "is in half precision, use model.float()."
            ) from error

    def feeds(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, npt.NDArray[Any]]:
        """The inputs of a call of `model` as arrays for the file's inputs.

        Inputs go together by name (that of `forward`'s parameter) if the names agree, otherwise by
        position if there are equally many.

        Raises:
            InputError: the file has other inputs, dtypes or shapes; all differences are listed.
        """
        given = named_inputs(model, args, kwargs)
        ports = self._session.get_inputs()
        names = [port.name for port in ports]
        if not set(names) <= set(given):
            if len(names) != len(given):
                raise InputError(
                    f"{self._label} has the inputs {', '.join(names) or 'none'}, but the example "
                    f"inputs are {', '.join(given) or 'none'}. Pass one tensor per input."
                )
            given = dict(zip(names, given.values(), strict=True))
        faults = [fault for port in ports for fault in _faults(port, given[port.name])]
        if faults:
            raise InputError(f"{self._label} does not take the example inputs: {'; '.join(faults)}")
        return {name: given[name].detach().cpu().contiguous().numpy() for name in names}

    def batch_is_dynamic(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether the first axis may vary in every input that holds the batch of these inputs."""
        batch = batch_size(tuple(args), kwargs)
        given = self.feeds(model, args, kwargs)
        shapes = [
            port.shape
            for port in self._session.get_inputs()
            if batch is not None and given[port.name].shape[:1] == (batch,)
        ]
        return bool(shapes) and not any(isinstance(shape[0], int) for shape in shapes)

    def check_open(self, axes: Mapping[str, Mapping[int, str]]) -> None:
        """Refuse the file if axes of its inputs are of a fixed size.

        Args:
            axes: labels by the name of an input and the place of the axis.

        Raises:
            ExportError: an axis is fixed.
        """
        for port in self._session.get_inputs():
            for axis in axes.get(port.name, {}):
                if isinstance(port.shape[axis], int):
                    raise ExportError(
                        f"axis {axis} of {port.name} came out as fixed to {port.shape[axis]}"
                    )

    def close(self) -> None:
        """Give back the memory; nothing can be run any more."""
        del self._session
        give_back_memory()

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
        """The file's outputs by name; the members of a sequence have their places behind its name.

        Raises:
            ExportError: onnxruntime fails, or an output holds no numbers.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL
        try:
            values = self._session.run(None, dict(feeds), options)
        except ONNXRUNTIME_ERRORS as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ExportError(
                f"onnxruntime cannot run {self._label} on inputs of shapes {shapes}: "
                f"{first_lines(error)}"
            ) from error
        names = [port.name for port in self._session.get_outputs()]
        found: dict[str, torch.Tensor] = {}
        for name, value in zip(names, values, strict=True):
            if isinstance(value, list):
                parts = {f"{name}.{at}": item for at, item in enumerate(value)}
            else:
                parts = {name: value}
            found.update((key, self._tensor(key, item)) for key, item in parts.items())
        return found

    def _tensor(self, name: str, value: Any) -> torch.Tensor:
        array = np.array(value)
        if array.dtype.kind in "OUS":
            raise ExportError(
                f"the output {name} of {self._label} holds no numbers, but text or mappings, which "
                "cannot be compared"
            )
        return torch.from_numpy(array)


def _is_well_formed(path: Path) -> bool:
    """Whether it is onnxruntime that lacks something, and not the file."""
    import onnx  # is not needed where all is well

    return attempt(lambda: onnx.checker.check_model(str(path))) is None


def _faults(port: Any, tensor: torch.Tensor) -> list[str]:
    """What keeps a tensor from being fed to an input, in words."""
    faults = []
    if _TYPES.get(tensor.dtype) != port.type:
        faults.append(f"{port.name} is {describe(tensor)}, expected {port.type}")
    fits = len(tensor.shape) == len(port.shape) and all(
        not isinstance(want, int) or have == want
        for have, want in zip(tensor.shape, port.shape, strict=True)
    )
    if not fits:
        faults.append(f"{port.name} is {describe(tensor)}, expected the shape {port.shape}")
    return faults
