"""Weights of diffusers' models, by its own loader and saver."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.models.diffusers_models import diffusers_class
from fxrebasin.models.folders import ModelFolder
from fxrebasin.models.library_imports import import_library
from fxrebasin.models.quiet import quiet
from fxrebasin.storage.folder_weights import (
    FolderWeights,
    Tree,
    asked,
    differences,
    kind_of_config,
    of_another_library,
    refuse_other_shapes,
    widest,
)

_WHOLE = 2**62  # bytes in a file: everything in one


class Diffusers:
    """diffusers' `from_pretrained` and `save_pretrained`."""

    stem = "diffusion_pytorch_model"
    pickled = "diffusion_pytorch_model"

    def takes(self, model: nn.Module) -> bool:
        """Whether a model is of diffusers."""
        library: Any = sys.modules.get("diffusers")
        return library is not None and isinstance(model, library.ModelMixin)

    def load(
        self, folder: ModelFolder, tree: Tree, model: nn.Module, weights: Path, *, trusted: bool
    ) -> FolderWeights:
        """The weights of a folder, in a new module of the class of a model."""
        if not self.takes(model):
            raise of_another_library(folder, model)
        kind: Any = type(model)
        if diffusers_class(folder) is not kind:
            raise CheckpointError(
                f"{folder.path} is of a {folder.config['_class_name']}; expected one of a "
                f"{kind.__name__}"
            )
        options = {
            "torch_dtype": torch.promote_types(widest(tree), torch.float32),
            "use_safetensors": ".safetensors" in weights.name,
            "variant": variant_of(weights.name),
            "local_files_only": True,
            "low_cpu_mem_usage": False,  # refuses what it does not find
        }
        module, info = asked(
            folder.path,
            "diffusers",
            lambda: kind.from_pretrained(
                str(folder.path), output_loading_info=True, ignore_mismatched_sizes=True, **options
            ),
        )
        refuse_other_shapes(folder.path, info["mismatched_keys"])
        differing = differences(dict(folder.config), kind_of_config(model))
        return FolderWeights(
            module,
            frozenset(info["missing_keys"]),
            tuple(sorted(info["unexpected_keys"])),
            tuple(differing),
        )

    def save(self, loaded: FolderWeights, state: Tree, scratch: Path) -> dict[str, torch.Tensor]:
        """Tensors by the names that they have in files. They may be backed by `scratch`."""
        module: Any = loaded.module
        # In place of those that are in it: these are not written to, and keep their dtypes.
        module.load_state_dict(dict(state), strict=False, assign=True)
        with quiet(import_library("diffusers")):
            module.save_pretrained(scratch, max_shard_size=_WHOLE)
        saved = load_file(scratch / f"{self.stem}.safetensors")
        return {name: tensor for name, tensor in saved.items() if name in state}


def variant_of(name: str) -> str | None:
    """The variant in the name of a file of weights or of an index: "fp16", or none.

    Example:
        >>> variant_of("model.fp16.safetensors"), variant_of("model.safetensors.index.json")
        ('fp16', None)
        >>> variant_of("model.safetensors.index.fp16.json")
        'fp16'
        >>> variant_of("diffusion_pytorch_model.non_ema-00001-of-00002.bin")
        'non_ema'
    """
    rest = re.sub(r"-\d{5}-of-\d{5}", "", name)
    parts = [p for p in rest.split(".")[1:] if p not in ("safetensors", "bin", "index", "json")]
    return ".".join(parts) or None
