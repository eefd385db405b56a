"""Functions and data that a command line names: `package.module:callable`, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fxrebasin.cli.data_folders import folder_batches
from fxrebasin.cli.work import Bench
from fxrebasin.errors import InputError
from fxrebasin.models.user_code import find_in_code

_FUNCTION = "package.module:callable"
_SOURCE = "package.module:callable, or a folder of images or texts"


def function(text: str, option: str) -> Callable[..., Any]:
    """A function of the user.

    Args:
        text: `package.module:callable`.
        option: with which it was given.

    Raises:
        InputError: there is no such function.
    """
    found = _named(text, option, _FUNCTION)
    if not callable(found):
        raise InputError(f"{option}: {text} is a {type(found).__name__}, not a function")
    result: Callable[..., Any] = found
    return result


def batches(text: str, option: str, bench: Bench) -> Iterable[Any]:
    """Batches of data: what a callable returns, what a name stands for, or files of a folder.

    Args:
        text: where they come from.
        option: with which it was given.
        bench: has the model, whose inputs say what files of a folder become.

    Raises:
        InputError: there is no such thing, or it gives no batches.
    """
    if Path(text).is_dir():
        return folder_batches(Path(text), bench)
    found = _named(text, option, _SOURCE)
    if not isinstance(found, Iterable) and callable(found):
        found = found()
    if not isinstance(found, Iterable):
        raise InputError(
            f"{option}: {text} gives a {type(found).__name__}; batches are expected, in a list or "
            "a loader: (inputs, targets), or inputs alone"
        )
    return found


def _named(text: str, option: str, forms: str) -> Any:
    module, separator, attribute = text.partition(":")
    if not separator or not module or not attribute:
        raise InputError(f"{option}: {text!r} names nothing; write {forms}")
    return find_in_code(module, attribute, f"{option} as {forms}")
