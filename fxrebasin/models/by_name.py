"""Models by name, as commands take them: from a library, the user's code, or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.models.diffusers_models import from_diffusers
from fxrebasin.models.folders import Library, open_folder
from fxrebasin.models.keywords import Builder, Keywords, split_keywords
from fxrebasin.models.model_zoos import from_timm, from_torchvision
from fxrebasin.models.transformers_models import from_transformers
from fxrebasin.models.user_code import from_code

FORMS = (
    "torchvision:NAME (torchvision:resnet50), timm:NAME (timm:convnext_atto), "
    "package.module:callable, or the folder of a Hugging Face model or its config.json; "
    "arguments come after a question mark (timm:resnet18?num_classes=10&in_chans=1)"
)
_HUGGING_FACE = "hf"


def build_model(name: str, *, trust_remote_code: bool = False) -> nn.Module:
    """Build the model that `name` stands for, with weights initialised from a fixed seed.

    Nothing is downloaded: libraries are asked for their models without pretrained weights, and
    folders are taken from this machine. For `package.module:callable` the module is imported as
    if Python had been started in the working directory, and the callable (a class, a function, or
    a module that exists already) is called with the arguments behind the question mark, or none.
    A folder (also `hf:FOLDER`, its config.json, or its index) gives the model of its
    configuration, of the class that transformers or diffusers takes for it; arguments are entries
    of the configuration.

    Args:
        name: one of `FORMS`.
        trust_remote_code: run code that a folder brings along, where its configuration names some.

    Raises:
        InputError: the name has none of these forms, the library or the model does not exist or
            does not take these arguments, or what was built is not a `torch.nn.Module`.

    Example:
        >>> build_model("torch.nn:Linear?in_features=3&out_features=2")
        Linear(in_features=3, out_features=2, bias=True)
    """
    # fork_rng: the same model on every call, and the caller's random numbers as they were.
    with torch.random.fork_rng(devices=[]):
        build = _find(name, trust_remote_code)
        torch.manual_seed(0)  # after imports, which may draw numbers too
        model = build()
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _find(name: str, trusted: bool) -> Builder:
    if Path(name).exists():  # whatever is in its name
        return _from_folder(Path(name), {}, trusted)
    base, keywords = split_keywords(name)
    library, separator, rest = base.partition(":")
    if library == _HUGGING_FACE and rest:
        return _from_folder(Path(rest), keywords, trusted)
    if Path(base).exists() or base.endswith(".json"):
        return _from_folder(Path(base), keywords, trusted)
    if not separator or not library or not rest:
        raise InputError(f"{name!r} names no model; write {FORMS}")
    if library in _LIBRARIES:
        return _LIBRARIES[library](rest, keywords)
    return from_code(library, rest, keywords, FORMS)


def _from_folder(path: Path, keywords: Keywords, trusted: bool) -> Builder:
    folder = open_folder(path)
    if folder.library is Library.DIFFUSERS:
        return from_diffusers(folder, keywords)
    return from_transformers(folder, keywords, trusted=trusted)


_LIBRARIES: dict[str, Callable[[str, Keywords], Builder]] = {
    "torchvision": from_torchvision,
    "timm": from_timm,
}
