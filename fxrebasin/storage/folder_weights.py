"""Weights of a folder as its library loads them, and what has to be told about that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from fxrebasin.errors import CheckpointError
from fxrebasin.models.folders import ModelFolder
from fxrebasin.models.library_imports import import_library
from fxrebasin.models.quiet import quiet
from fxrebasin.running.messages import attempt, first_lines
from fxrebasin.wording import listed

T = TypeVar("T")
Tree: TypeAlias = Mapping[str, torch.Tensor]

# What configurations say beside what a model computes.
_ASIDE = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache"),
    *("transformers_version", "_diffusers_version", "id2label", "label2id", "problem_type"),
}


@dataclass(frozen=True)
class FolderWeights:
    """The weights of a folder in a module.

    Args:
        module: of the model's class, with the configuration of the folder.
        missing: names of the module for which the folder has nothing.
        unused: names in the folder that the class does not take.
        differing: entries of the configuration that are not those of the model, in words.
    """

    module: nn.Module
    missing: frozenset[str]
    unused: tuple[str, ...]
    differing: tuple[str, ...]


def kind_of_config(model: nn.Module) -> dict[str, Any]:
    """What the configuration of a model of a library says.

    Args:
        model: of transformers or diffusers.
    """
    config: Any = model.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def differences(theirs: Mapping[str, Any], own: Mapping[str, Any], place: str = "") -> list[str]:
    """Entries that two configurations have both, with other values, in words.

    Args:
        theirs: of a folder.
        own: of the model.
        place: of both inside a larger configuration.

    Example:
        >>> differences({"depth": 2, "width": 3, "a": 1}, {"depth": 2, "width": 4})
        ['width is 3 and not 4']
    """
    found: list[str] = []
    for name in (name for name in theirs if name in own and name not in _ASIDE):
        left, right = theirs[name], own[name]
        if isinstance(left, dict) and isinstance(right, dict):
            found += differences(left, right, f"{place}{name}.")
        elif left != right and not (name.startswith("_") or isinstance(left, dict)):
            found.append(f"{place}{name} is {left!r} and not {right!r}")
    return found


def asked(path: Path, library: str, call: Callable[[], T]) -> T:
    """What a library makes of a folder or file, or why it does not.

    Args:
        path: of it.
        library: that is asked.
        call: of the library.

    Raises:
        CheckpointError: it raised something.
    """
    made: list[T] = []
    with quiet(import_library(library)):
        error = attempt(lambda: made.append(call()))
    if error is not None:
        raise CheckpointError(f"{library} does not load {path}: {first_lines(error)}") from error
    return made[0]


def widest(tree: Tree) -> torch.dtype:
    """A dtype of floating numbers that holds all of those in the tree as they are."""
    found = {tensor.dtype for tensor in tree.values() if tensor.is_floating_point()}
    return reduce(torch.promote_types, found) if found else torch.float32


def refuse_other_shapes(path: Path, mismatched: Any) -> None:
    """Weights that do not fit their configuration.

    Args:
        path: where they are.
        mismatched: names with the shapes in the file and in the module.

    Raises:
        CheckpointError: there are some.
    """
    if mismatched:
        shown = [
            f"{name} is {list(stored)} there and {list(wanted)} by the configuration"
            for name, stored, wanted in sorted(mismatched)
        ]
        raise CheckpointError(f"{path} does not fit its own configuration: {listed(shown, 10)}")


def of_another_library(folder: ModelFolder, model: nn.Module) -> CheckpointError:
    """The error for a folder of one library and a model of another.

    Args:
        folder: that was read.
        model: that it was read for.
    """
    return CheckpointError(
        f"{folder.path} is of a model of {folder.library.value}; expected one for "
        f"{type(model).__name__}, which is of another library"
    )
