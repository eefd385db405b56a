"""Models of torchvision and timm, without weights, in the variant that keywords ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from fxrebasin.errors import InputError
from fxrebasin.models.keywords import Builder, Keywords, accepted, check_known, nearest
from fxrebasin.models.library_imports import import_library
from fxrebasin.running.messages import attempt, first_lines

_FETCHING = (
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
)
# What `timm.create_model` takes itself or hands to its builder, not to the class.
_TIMM_BUILDER = ("features_only", "out_indices", "scriptable", "exportable", "no_jit")


def from_torchvision(name: str, keywords: Keywords) -> Builder:
    """A model of torchvision, by its name there.

    Raises:
        InputError: there is no such model, or it does not take these keywords.
    """
    models = import_library("torchvision.models")
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    # Backbones would be downloaded; slow initialisers matter only for training.
    unwanted: dict[str, Any] = {"weights_backbone": None, "init_weights": False}
    fixed = {k: v for k, v in unwanted.items() if k in inspect.signature(builder).parameters}

    def build(**options: Any) -> object:
        return builder(weights=None, **{**fixed, **options})

    own = accepted(builder)[0] - {"progress"}
    return _prepared(f"torchvision:{name}", build, own, keywords)


def from_timm(name: str, keywords: Keywords) -> Builder:
    """A model of timm, by its name there.

    Raises:
        InputError: there is no such model, or it does not take these keywords.
    """
    timm = import_library("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())

    def build(**options: Any) -> object:
        return timm.create_model(name, pretrained=False, **options)

    return _prepared(f"timm:{name}", build, set(_TIMM_BUILDER), keywords)


def _prepared(
    name: str, build: Callable[..., object], own: set[str], keywords: Keywords
) -> Builder:
    """The call with these keywords, each of which the builder or the class has to know."""
    fetching = [keyword for keyword in keywords if keyword in _FETCHING]
    if fetching:
        raise InputError(
            f"{name} is built without weights, so {', '.join(fetching)} cannot be given: nothing "
            "is downloaded. Name a file or folder of weights beside the model"
        )
    if keywords:
        check_known(name, keywords, (own | _names_of(build)).difference(_FETCHING))
    return partial(_built, name, build, keywords)


def _names_of(build: Callable[..., object]) -> set[str]:
    """What the class takes: builders hand on everything, and some classes pass over the rest."""
    made: list[object] = []
    with torch.device("meta"):
        failed = attempt(lambda: made.append(build()))
    kind = type(build() if failed else made[0])
    return set().union(*(accepted(base)[0] for base in kind.__mro__ if base is not object))


def _built(name: str, build: Callable[..., object], keywords: Keywords) -> object:
    made: list[object] = []
    error = attempt(lambda: made.append(build(**keywords)))
    if error is not None:
        given = ", ".join(f"{keyword}={value!r}" for keyword, value in keywords.items())
        raise InputError(
            f"{name} cannot be built with {given or 'no arguments'}: {first_lines(error)}"
        ) from error
    return made[0]


def _unknown(library: str, name: str, known: Iterable[str]) -> InputError:
    return InputError(f"{library} has no model {name!r}{nearest(name, known)}")
