"""Models from the user's own code, named `package.module:callable`."""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.keywords import Builder, Keywords, accepted, check_known


def from_code(module_name: str, attribute: str, keywords: Keywords, forms: str) -> Builder:
    """What a callable returns, or a module that exists already.

    The module is imported as if Python had been started in the working directory.

    Args:
        module_name: where the callable is.
        attribute: its name there, with dots where it is inside something.
        keywords: that it is called with.
        forms: how models may be named, for messages.

    Raises:
        InputError: there is nothing of that name, or it cannot be called with these keywords.
    """
    target = find_in_code(module_name, attribute, forms)
    name = f"{module_name}:{attribute}"
    if isinstance(target, nn.Module):
        check_known(f"{name}, which exists already,", keywords, ())
        return lambda: target
    if not callable(target):
        raise InputError(f"{name} is a {type(target).__name__}, not a model or a callable")
    _check_arguments(name, target, keywords)
    return partial(target, **keywords)


def find_in_code(module_name: str, attribute: str, forms: str) -> Any:
    """An object in a module, which is imported as if Python had been started here.

    Args:
        module_name: where it is.
        attribute: its name there, with dots where it is inside something.
        forms: how it may be named, for messages.

    Raises:
        InputError: there is nothing of that name.
    """
    target: Any = _import_from_working_directory(module_name, forms)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise InputError(f"module {module_name!r} has no {attribute!r}")
        target = getattr(target, part)
    return target


def _check_arguments(name: str, target: Any, keywords: Keywords) -> None:
    try:
        names, others = accepted(target)
    except (TypeError, ValueError):
        return  # of what is written in C: calling it will tell
    if not others:
        check_known(name, keywords, names)
    try:
        inspect.signature(target).bind(**keywords)
    except TypeError as error:
        called = f"with {', '.join(keywords)} alone" if keywords else "without arguments"
        raise InputError(
            f"{name} cannot be called {called} ({error}); give what is missing as "
            f"{name}?keyword=value, or name a function that returns the model"
        ) from error


def _import_from_working_directory(name: str, forms: str) -> ModuleType:
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
            f"write {forms}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
