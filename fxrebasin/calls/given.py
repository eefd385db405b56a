"""What callers pass as a model or a reference, and what of it an ONNX file cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.kinds import Kinds

if TYPE_CHECKING:
    from onnx import ModelProto


Reference: TypeAlias = nn.Module | Mapping[str, torch.Tensor] | str | PathLike[str]
"""A module, a state dict, or the path of weights: a file, an index of shards, or a folder."""


OnnxOrModule: TypeAlias = "nn.Module | ModelProto | str | PathLike[str]"
"""A module; or the path of an ONNX file, or such a model in memory."""


def is_onnx(model: object) -> TypeGuard[ModelProto | str | PathLike[str]]:
    """Whether a model is an ONNX file, or was read from one; onnx is not loaded to see that.

    Args:
        model: as the caller passed it.
    """
    return isinstance(model, str | PathLike) or type(model).__name__ == "ModelProto"


def refuse_buffers(state_buffers: Sequence[str]) -> None:
    """Refuse `state_buffers` of a call on an ONNX file.

    Args:
        state_buffers: as the caller passed it.

    Raises:
        InputError: it names anything.
    """
    if state_buffers:
        raise InputError("state_buffers is for modules; an ONNX file has no buffers")


def refuse_kinds(kinds: Kinds) -> None:
    """Refuse symmetries beyond permutations of a call on an ONNX file.

    Args:
        kinds: which the caller asks for.

    Raises:
        InputError: they are not permutations.
    """
    if kinds is not Kinds.PERMUTATION:
        raise InputError(
            f"symmetry={kinds.value!r}: of ONNX files only permutations are found; pass the "
            "module that the file was made from"
        )
