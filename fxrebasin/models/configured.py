"""A model from a configuration that was read, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fxrebasin.errors import InputError
from fxrebasin.models.folders import ModelFolder
from fxrebasin.running.messages import attempt, first_lines


def built(
    build: Callable[[Any], object],
    config: Any,
    folder: ModelFolder,
    silence: AbstractContextManager[None],
) -> object:
    """What a class of a library makes of a configuration.

    Args:
        build: the class, or its method for that.
        config: the configuration.
        folder: where it was read, for the message.
        silence: around the call.

    Raises:
        InputError: the configuration does not fit the class.
    """
    made: list[object] = []
    with silence:
        error = attempt(lambda: made.append(build(config)))
    if error is not None:
        raise InputError(
            f"no model can be built from {folder.file}: {first_lines(error)}"
        ) from error
    return made[0]
