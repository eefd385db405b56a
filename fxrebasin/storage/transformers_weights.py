"""Weights of transformers' models, by its own loader and saver."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.models.folders import ModelFolder
from fxrebasin.models.library_imports import import_library
from fxrebasin.models.quiet import quiet
from fxrebasin.models.transformers_models import parts_of, read_configuration
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


class Transformers:
    """transformers' `from_pretrained` and `save_pretrained`."""

    stem = "model"
    pickled = "pytorch_model"

    def takes(self, model: nn.Module) -> bool:
        """Whether a model is of transformers."""
        library: Any = sys.modules.get("transformers")
        return library is not None and isinstance(model, library.PreTrainedModel)

    def load(
        self, folder: ModelFolder, tree: Tree, model: nn.Module, weights: Path, *, trusted: bool
    ) -> FolderWeights:
        """The weights of a folder, in a new module of the class of a model."""
        if not self.takes(model):
            raise of_another_library(folder, model)
        kind: Any = type(model)
        config = self._configuration(folder, kind, trusted)
        return self._loaded(folder.path, tree, model, config)

    def load_alone(self, path: Path, tree: Tree, model: nn.Module) -> FolderWeights:
        """The weights of a file, in a new module with the configuration of a model.

        Args:
            path: of the file, for messages.
            tree: what is in it.
            model: of transformers.

        Raises:
            CheckpointError: they do not fit.
        """
        found: Any = model
        return self._loaded(path, tree, model, found.config)

    def _loaded(self, path: Path, tree: Tree, model: nn.Module, config: Any) -> FolderWeights:
        kind: Any = type(model)
        options = {"config": config, "dtype": widest(tree), "local_files_only": True}
        module, info = asked(
            path,
            "transformers",
            # By tensors and not by the folder: no file is looked for, and none fetched.
            lambda: kind.from_pretrained(
                None,
                state_dict=dict(tree),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            ),
        )
        refuse_other_shapes(path, info["mismatched_keys"])
        missing = {*info["missing_keys"], *self._passed_over(module, tree)}
        differing = differences(config.to_dict(), kind_of_config(model))
        return FolderWeights(
            module, frozenset(missing), tuple(sorted(info["unexpected_keys"])), tuple(differing)
        )

    def _configuration(self, folder: ModelFolder, kind: Any, trusted: bool) -> Any:
        config = read_configuration(folder, trusted=trusted)
        if isinstance(config, kind.config_class):
            return config
        if any(isinstance(part, kind.config_class) for part in parts_of(config)):
            return read_configuration(folder, trusted=trusted, kind=kind.config_class)
        raise CheckpointError(
            f"{folder.path} is of a {folder.config['model_type']} model; expected one for "
            f"{kind.__name__}, which is a {kind.config_class.model_type} model"
        )

    def _passed_over(self, module: Any, tree: Tree) -> Iterator[str]:
        """Parameters that the class says nothing about when they are missing, and that are."""
        patterns = [re.compile(pattern) for pattern in module._keys_to_ignore_on_load_missing or ()]
        base = f"{module.base_model_prefix}."
        computed = module._keys_to_ignore_on_save or ()  # never stored
        for name, _ in module.named_parameters(remove_duplicate=False):
            silent = any(pattern.search(name) for pattern in patterns)
            if (
                silent
                and name not in computed
                and not {name, base + name, name.removeprefix(base)} & tree.keys()
            ):
                yield name

    def save(self, loaded: FolderWeights, state: Tree, scratch: Path) -> dict[str, torch.Tensor]:
        """Tensors by the names that they have in files. They may be backed by `scratch`."""
        module: Any = loaded.module
        transformers = import_library("transformers")
        if module.can_generate():  # one that cannot be invalid; the folder has its own
            module.generation_config = transformers.GenerationConfig()
        with quiet(transformers):
            module.save_pretrained(scratch, state_dict=dict(state), max_shard_size=_WHOLE)
        return load_file(scratch / f"{self.stem}.safetensors")
