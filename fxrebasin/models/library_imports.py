"""Import the libraries that models come from, or say what hinders it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

from fxrebasin.errors import InputError
from fxrebasin.models.torchvision_shim import ensure_torchvision

_NEED_TORCHVISION = ("torchvision", "timm")
_USE_TORCHVISION = ("transformers", "diffusers")  # where it is installed


def import_library(name: str) -> ModuleType:
    """A module of a library of models.

    Args:
        name: of the module, such as `torchvision.models`.

    Raises:
        InputError: the library, or what it needs, is not installed or cannot be imported.

    Example:
        >>> import_library("torchvision.models").__name__
        'torchvision.models'
    """
    package = name.split(".")[0]
    try:
        used = package in _USE_TORCHVISION and importlib.util.find_spec("torchvision") is not None
        if used or package in _NEED_TORCHVISION:
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
