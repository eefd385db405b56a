"""Folders of Hugging Face models: whose they are, as their configuration says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fxrebasin.errors import InputError

CONFIG = "config.json"
PIPELINE = "model_index.json"
ADAPTER = "adapter_config.json"
INDEX = ".index.json"


class Library(Enum):
    """The library that reads and writes a folder."""

    TRANSFORMERS = "transformers"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True)
class ModelFolder:
    """A folder of one model.

    Args:
        path: of the folder.
        file: of the configuration.
        library: that reads it.
        config: what the configuration says.
    """

    path: Path
    file: Path
    library: Library
    config: Mapping[str, Any]


def folder_of(path: Path) -> Path | None:
    """The folder that a path means: itself, or that of a configuration or an index of shards.

    Example:
        >>> folder_of(Path("somewhere") / "config.json") is None  # there is none
        True
    """
    if path.is_dir():
        return path
    beside = path.name.endswith(INDEX) and (path.parent / CONFIG).is_file()
    return path.parent if path.is_file() and (path.name == CONFIG or beside) else None


def is_hugging_face(path: Path) -> bool:
    """Whether a path is a folder that transformers, diffusers or peft wrote, or a file that
    stands for one: its configuration or index.

    Example:
        >>> is_hugging_face(Path("nowhere"))
        False
    """
    folder = folder_of(path)
    if folder is None:
        return False
    if any((folder / name).is_file() for name in (PIPELINE, ADAPTER)):
        return True
    config = folder / CONFIG
    return config.is_file() and _library(_json(config)) is not None


def open_folder(path: Path) -> ModelFolder:
    """The model that a folder, its configuration, or its index stands for.

    Args:
        path: of one of these; a configuration may have another name than config.json.

    Raises:
        InputError: there is nothing, or a pipeline of several models, or an adapter without the
            model that it belongs to, or no configuration of a known kind.
    """
    folder = folder_of(path)
    file = path if folder is None else folder / CONFIG
    if folder is not None:
        _refuse_pipeline(folder)
        _refuse_adapter(folder)
    if not file.is_file():
        raise InputError(
            f"there is no Hugging Face configuration at {file}. Folders and files are taken from "
            "this machine; nothing is downloaded (`hf download NAME --local-dir FOLDER` does that)"
        )
    config = _json(file)
    library = _library(config)
    if library is None:
        raise InputError(
            f"{file} is not a Hugging Face configuration: expected a JSON object with a "
            "'model_type' (transformers) or a '_class_name' (diffusers)"
        )
    return ModelFolder(file.parent, file, library, config)


def _json(file: Path) -> Mapping[str, Any]:
    """What a file holds; nothing where that is no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _library(config: Mapping[str, Any]) -> Library | None:
    if isinstance(config.get("_class_name"), str):
        return Library.DIFFUSERS
    return Library.TRANSFORMERS if isinstance(config.get("model_type"), str) else None


def _refuse_pipeline(folder: Path) -> None:
    if (folder / CONFIG).is_file() or not (folder / PIPELINE).is_file():
        return
    parts = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}")) if _library(_json(path))]
    named = f": {', '.join(map(str, parts))}" if parts else ""
    raise InputError(
        f"{folder} is a pipeline of several models; name the folder of one of them{named}"
    )


def _refuse_adapter(folder: Path) -> None:
    if not (folder / ADAPTER).is_file():
        return
    raise InputError(
        f"{folder} holds an adapter (such as LoRA) and not all weights of a model. Merge it into "
        "its model first, with peft's `merge_and_unload()`, and save that with `save_pretrained`"
    )
