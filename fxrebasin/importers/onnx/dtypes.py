"""ONNX's element types as torch's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto

from fxrebasin.errors import InputError

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Those that both have; strings and numbers of 8 bits and fewer with a fraction are left out."""


class UnknownTypeError(InputError):
    """An element type that has no counterpart in torch."""


def dtype_of(code: int) -> torch.dtype:
    """The torch type of one of ONNX's element types.

    Raises:
        UnknownTypeError: there is none.

    Example:
        >>> dtype_of(1)
        torch.float32
    """
    if code not in DTYPES:
        name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else code
        raise UnknownTypeError(
            f"the element type {name} has no counterpart in torch; cut what has this type out of "
            "the file (onnx.utils.extract_model)"
        )
    return DTYPES[code]
