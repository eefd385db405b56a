"""Models by name, as commands take them: from a library, the user's code, or a configuration."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.torchvision_shim import ensure_torchvision

Builder: TypeAlias = Callable[[], object]

FORMS = (
    "torchvision:NAME (torchvision:resnet50), timm:NAME (timm:convnext_atto), "
    "package.module:callable, or the path of a Hugging Face config.json"
)


def build_model(name: str) -> nn.Module:
    """Build the model that `name` stands for, with weights initialised from a fixed seed.

    Nothing is downloaded: libraries are asked for their models without pretrained weights. For
    `package.module:callable` the module is imported as if Python had been started in the working
    directory, and the callable (a class, a function, or a module that exists already) is called
    without arguments.

    Args:
        name: one of `FORMS`.

    Raises:
        InputError: the name has none of these forms, the library or the model does not exist, or
            what was built is not a `torch.nn.Module`.

    Example:
        >>> build_model("torch.nn:Identity")
        Identity()
    """
    # fork_rng: the same model on every call, and the caller's random numbers as they were.
    with torch.random.fork_rng(devices=[]):
        build = _find(name)
        torch.manual_seed(0)  # after imports, which may draw numbers too
        model = build()
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _find(name: str) -> Builder:
    if name.endswith(".json"):
        return _from_configuration(Path(name))
    library, separator, rest = name.partition(":")
    if not separator or not library or not rest:
        raise InputError(f"{name!r} names no model; write {FORMS}")
    if library in _LIBRARIES:
        return _LIBRARIES[library](rest)
    return _from_code(library, rest)


def _from_torchvision(name: str) -> Builder:
    models = _import_library("torchvision.models")
    if name not in models.list_models():
        raise _unknown_name("torchvision", name, models.list_models())
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # Backbones would be downloaded; slow initialisers matter only for training.
    unwanted: dict[str, Any] = {"weights_backbone": None, "init_weights": False}
    options = {key: value for key, value in unwanted.items() if key in parameters}
    return partial(models.get_model, name, weights=None, **options)


def _from_timm(name: str) -> Builder:
    timm = _import_library("timm")
    if not timm.is_model(name):
        raise _unknown_name("timm", name, timm.list_models())
    return partial(timm.create_model, name, pretrained=False)


def _from_configuration(path: Path) -> Builder:
    if not path.is_file():
        raise InputError(f"there is no Hugging Face configuration at {path}")
    transformers = _import_library("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a Hugging Face configuration: {error}") from error
    architectures = getattr(config, "architectures", None) or ()
    for architecture in architectures:
        if hasattr(transformers, architecture):
            return partial(getattr(transformers, architecture), config)
    return partial(transformers.AutoModel.from_config, config)


def _from_code(module_name: str, attribute: str) -> Builder:
    target: Any = _import_from_working_directory(module_name)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputError(f"module {module_name!r} has no {attribute!r}")
        target = getattr(target, part)
    if isinstance(target, nn.Module):
        return lambda: target
    name = f"{module_name}:{attribute}"
    if not callable(target):
        raise InputError(f"{name} is a {type(target).__name__}, not a model or a callable")
    _check_takes_nothing(name, target)
    builder: Builder = target
    return builder


def _check_takes_nothing(name: str, target: Callable[..., Any]) -> None:
    try:
        inspect.signature(target).bind()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} cannot be called without arguments ({error}); "
            "name a function that takes none and returns the model"
        ) from error


def _import_from_working_directory(name: str) -> ModuleType:
    """Import as `python -m` would; an installed command does not look where it is run."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"no module named {error.name!r}, which {name}:… needs, was found from {here}; "
            f"write {FORMS}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _import_library(name: str) -> ModuleType:
    package = name.split(".")[0]
    try:
        if package in ("torchvision", "timm"):
            ensure_torchvision()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{package} needs {error.name!r}, which is not installed: "
            "run `pip install 'fxrebasin[models]'`"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        # torchvision compiled for another build of torch fails to register its operators.
        raise InputError(
            f"{package} is installed but cannot be imported beside torch {torch.__version__}: "
            f"{error}. Usually the two were built for different torch versions or devices; "
            "install torch and torchvision from the same package index"
        ) from error


def _unknown_name(library: str, name: str, known: Iterable[str]) -> InputError:
    close = difflib.get_close_matches(name, list(known))
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return InputError(f"{library} has no model {name!r}{hint}")


_LIBRARIES: dict[str, Callable[[str], Builder]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}
