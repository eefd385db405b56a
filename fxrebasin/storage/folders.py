"""Folders of transformers' and diffusers' models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.reading import Checkpoint, Reading


def is_model_folder(path: Path) -> bool:
    """Whether a path is a folder of a model of transformers or diffusers, or its configuration."""
    return False


def read_folder(path: Path, model: nn.Module, reading: Reading) -> Checkpoint:
    """The weights in a folder, through the loader of its library.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    raise CheckpointError(f"{path} cannot be read: it is the folder of a model.")


def write_folder(
    out: Path,
    like: Checkpoint,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    card: str | None = None,
) -> tuple[Path, ...]:
    """A folder that the library's `from_pretrained` loads.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    raise CheckpointError(f"{out} cannot be written: it is the folder of a model.")
