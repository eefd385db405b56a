"""Models of transformers from their configurations. Nothing is asked, fetched or run.

A configuration is a file from somewhere: it may name code, weights of a backbone on the Hub, or
kernels to download. Code runs only where it is trusted in so many words; the rest is set to what
transformers itself brings, which computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fxrebasin.errors import FxRebasinError, InputError
from fxrebasin.models.configured import built
from fxrebasin.models.folders import CONFIG, ModelFolder
from fxrebasin.models.keywords import Builder, Keywords, check_known
from fxrebasin.models.library_imports import import_library
from fxrebasin.models.quiet import quiet
from fxrebasin.running.messages import attempt, first_lines

_ATTENTION = ("eager", "sdpa", "flex_attention")
_EXPERTS = ("eager", "batched_mm", "grouped_mm")


def from_transformers(folder: ModelFolder, keywords: Keywords, *, trusted: bool) -> Builder:
    """The model of a configuration, with random weights in float32.

    Args:
        folder: of the model.
        keywords: entries of the configuration that are to be others.
        trusted: run code from the folder where the configuration names some.

    Raises:
        InputError: the configuration is none, or names no class of models, or asks for code that
            is not trusted.
    """
    config = read_configuration(folder, keywords, trusted=trusted)
    kind = model_class(folder, config, trusted=trusted)
    silence = quiet(import_library("transformers"))
    return lambda: _with_constants(built(kind, config, folder, silence))


def _with_constants(module: Any) -> object:
    """The module, in which what is never stored, as it is computed anew, is no parameter."""
    for name in getattr(module, "_keys_to_ignore_on_save", None) or ():
        place, _, attribute = name.rpartition(".")
        owner = module.get_submodule(place)
        parameter = owner._parameters.get(attribute)
        if parameter is not None and not parameter.requires_grad:
            del owner._parameters[attribute]
            owner.register_buffer(attribute, parameter.detach())
    return module


def read_configuration(
    folder: ModelFolder, keywords: Keywords | None = None, *, trusted: bool, kind: Any = None
) -> Any:
    """The configuration in a folder, with nothing in it that would be fetched.

    Args:
        folder: of the model.
        keywords: entries that are to be others.
        trusted: run code from the folder where the configuration names some.
        kind: class of the configuration; the one that is named in it when left out.

    Raises:
        InputError: it is none, or asks for code that is not trusted.
    """
    transformers = import_library("transformers")
    # Of custom code, transformers finds the files by the folder.
    place = str(folder.path if folder.file.name == CONFIG else folder.file)
    options = {"local_files_only": True, "trust_remote_code": trusted}
    if kind is None:
        kind = transformers.AutoConfig
    else:
        del options["trust_remote_code"]  # it is the class that runs, or none
    config = _configuration(kind, place, folder, options)
    if keywords:
        known = {*config.to_dict(), "num_labels"}
        check_known(f"the configuration {folder.file}", keywords, known)
        config = _configuration(kind, place, folder, {**keywords, **options})
    _settle(config, folder)
    return config


def _configuration(kind: Any, place: str, folder: ModelFolder, options: Keywords) -> Any:
    made: list[Any] = []
    with quiet(import_library("transformers")):
        error = attempt(lambda: made.append(kind.from_pretrained(place, **options)))
    if error is None:
        return made[0]
    if "auto_map" in folder.config and not options.get("trust_remote_code"):
        raise InputError(
            f"{folder.file} names code of its own ('auto_map') that transformers does not have. "
            "fxrebasin runs it only if you say so: trust_remote_code=True, on the command line "
            "--trust-remote-code"
        ) from error
    raise InputError(
        f"{folder.file} is not a Hugging Face configuration that the installed transformers "
        f"reads: {first_lines(error)}"
    ) from error


def parts_of(config: Any) -> Iterator[Any]:
    """A configuration and all that are inside it, from the outside in."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "sub_configs") and hasattr(value, "to_dict"):
            yield from parts_of(value)


def _settle(config: Any, folder: ModelFolder) -> None:
    """Of what would be fetched, nothing; of ways to compute the same, one that is built in."""
    parts = list(parts_of(config))
    if any(getattr(part, "quantization_config", None) for part in parts):
        raise InputError(
            f"{folder.file} is of a quantised model ('quantization_config'): its values are "
            "packed or scaled by unit. Permute or merge the model before it is quantised"
        )
    wanted = [getattr(part, "_attn_implementation", None) for part in parts]
    for part, attention in zip(parts, wanted, strict=True):  # sets those inside too: outside first
        part._attn_implementation = attention if attention in _ATTENTION else None
    for part in parts:
        if getattr(part, "_experts_implementation", None) not in _EXPERTS:
            part._experts_implementation = None
        for entry in ("fusion_config", "distributed_config"):
            if getattr(part, entry, None) is not None:
                setattr(part, entry, None)
        if getattr(part, "use_pretrained_backbone", None):
            part.use_pretrained_backbone = False
        part.dtype = torch.float32
        _check_backbone(part, folder)


def _check_backbone(part: Any, folder: ModelFolder) -> None:
    """timm looks for names with a colon on the Hub."""
    names = [getattr(part, entry, None) for entry in ("backbone", "architecture")]
    named = [name for name in names if isinstance(name, str)]
    if any(":" in name for name in named):
        raise InputError(
            f"{folder.file} names a backbone to fetch: {', '.join(named)}; nothing is downloaded"
        )


def model_class(folder: ModelFolder, config: Any, *, trusted: bool) -> Any:
    """The class of models that a configuration is for.

    Raises:
        InputError: the name in it is none of a model, or of one with another configuration.
    """
    transformers = import_library("transformers")
    names = _architectures(folder) or [_base_model(transformers, config, folder)]
    for name in names:
        found = _named(transformers, name)
        if trusted and found is None:
            found = _custom_class(folder, name)
        if isinstance(found, type) and _is_model_for(found, config, transformers):
            return found
    code = (
        " It names code of its own, which is run only with trust_remote_code=True, on the command "
        "line --trust-remote-code."
        if "auto_map" in folder.config and not trusted
        else ""
    )
    raise InputError(
        f"{folder.file} names {', '.join(names)} under 'architectures': transformers "
        f"{transformers.__version__} has no class of models of that name with a "
        f"{type(config).__name__}.{code}"
    )


def _named(transformers: Any, name: str) -> Any:
    """What transformers has under a name, if that can be imported."""
    made: list[Any] = []
    if name.isidentifier():
        attempt(lambda: made.append(getattr(transformers, name)))
    return made[0] if made else None


def _architectures(folder: ModelFolder) -> list[str]:
    names = folder.config.get("architectures") or ()
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _is_model_for(found: type, config: Any, transformers: Any) -> bool:
    kind = getattr(found, "config_class", None)
    is_model = issubclass(found, transformers.PreTrainedModel)
    return is_model and isinstance(kind, type) and isinstance(config, kind)


def _base_model(transformers: Any, config: Any, folder: ModelFolder) -> str:
    found = transformers.MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise InputError(
            f"{folder.file} names no class of models ('architectures'), and transformers has no "
            f"base model for a {type(config).__name__}"
        )
    first = found[0] if isinstance(found, tuple | list) else found
    return str(first.__name__)


def _custom_class(folder: ModelFolder, name: str) -> Any:
    """A class of models from code in the folder, which the user trusts."""
    dynamic = import_library("transformers.dynamic_module_utils")
    entries = folder.config.get("auto_map")
    places = list(entries.values()) if isinstance(entries, dict) else []
    place = next((p for p in places if isinstance(p, str) and p.split(".")[-1] == name), None)
    if place is None:
        return None
    made: list[Any] = []
    error = attempt(
        lambda: made.append(
            dynamic.get_class_from_dynamic_module(place, str(folder.path), local_files_only=True)
        )
    )
    if error is not None and not isinstance(error, FxRebasinError):
        raise InputError(f"{place} in {folder.path} cannot be run: {first_lines(error)}") from error
    return made[0]
