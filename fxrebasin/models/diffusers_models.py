"""Models of diffusers from their configurations. Nothing is fetched, and no other code run."""

from __future__ import annotations

from functools import partial
from typing import Any

from fxrebasin.errors import InputError
from fxrebasin.models.configured import built
from fxrebasin.models.folders import ModelFolder
from fxrebasin.models.keywords import Builder, Keywords, accepted, check_known
from fxrebasin.models.library_imports import import_library
from fxrebasin.models.quiet import quiet


def from_diffusers(folder: ModelFolder, keywords: Keywords) -> Builder:
    """The model of a configuration, with random weights in float32.

    Args:
        folder: of the model.
        keywords: entries of the configuration that are to be others.

    Raises:
        InputError: the configuration names no class of models, or does not fit it.
    """
    kind = diffusers_class(folder)
    check_known(f"the configuration {folder.file}", keywords, accepted(kind)[0])
    config = {**folder.config, **keywords}
    return partial(built, kind.from_config, config, folder, quiet(import_library("diffusers")))


def diffusers_class(folder: ModelFolder) -> Any:
    """The class of models that a configuration is for.

    Raises:
        InputError: the name in it is none of a model, or the model is quantised.
    """
    diffusers = import_library("diffusers")
    name = str(folder.config["_class_name"])
    if folder.config.get("quantization_config"):
        raise InputError(
            f"{folder.file} is of a quantised model ('quantization_config'): its values are "
            "packed or scaled by unit. Permute or merge the model before it is quantised"
        )
    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise InputError(
            f"{folder.file} names {name} under '_class_name': diffusers {diffusers.__version__} "
            "has no class of models of that name"
        )
    return found
