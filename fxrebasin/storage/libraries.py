"""What transformers' and diffusers' own loaders and savers make of the weights of a folder.

Their names for a tensor in a file may be others than in the module (several tensors may even
become one), a base model may be loaded into one with a head, and tied tensors are stored once. The
libraries know all that, so they are asked, both ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from fxrebasin.models.folders import Library, ModelFolder
from fxrebasin.storage.diffusers_weights import Diffusers
from fxrebasin.storage.folder_weights import FolderWeights, Tree
from fxrebasin.storage.transformers_weights import Transformers


class Binding(Protocol):
    """How a library loads and saves."""

    stem: str
    """Of the names of files of weights in safetensors."""
    pickled: str
    """The same, of torch's own files."""

    def takes(self, model: nn.Module) -> bool:
        """Whether a model is of this library."""

    def load(
        self, folder: ModelFolder, tree: Tree, model: nn.Module, weights: Path, *, trusted: bool
    ) -> FolderWeights:
        """The weights of a folder, in a new module of the class of a model."""

    def save(self, loaded: FolderWeights, state: Tree, scratch: Path) -> dict[str, torch.Tensor]:
        """Tensors by the names that they have in files. They may be backed by `scratch`."""


def binding(library: Library) -> Binding:
    """How a library loads and saves.

    Example:
        >>> binding(Library.TRANSFORMERS).stem
        'model'
    """
    return _BINDINGS[library]


def of_a_library(model: nn.Module) -> bool:
    """Whether a model is of a library with loaders of its own.

    Example:
        >>> of_a_library(nn.Linear(2, 2))
        False
    """
    return any(found.takes(model) for found in _BINDINGS.values())


_BINDINGS: dict[Library, Binding] = {
    Library.TRANSFORMERS: Transformers(),
    Library.DIFFUSERS: Diffusers(),
}
