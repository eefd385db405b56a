"""What commands print: for people on a terminal or in a log, or one JSON document."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fxrebasin.cli.options import RESULTS, Talk
from fxrebasin.errors import InputError
from fxrebasin.wording import presentable

_FILES = "fxrebasin.files"
"""Where a context keeps the files that are in their places when results are printed."""


def say(talk: Talk, text: str) -> None:
    """A line for people; where JSON is asked for, it goes to standard error.

    Args:
        talk: what is printed.
        text: the line.
    """
    with _printing():
        click.echo(presentable(text.replace("\n", "\\n")), err=talk.as_json)


def show(talk: Talk, view: Any, document: Mapping[str, Any]) -> None:
    """The result of a command.

    Args:
        talk: what is printed.
        view: for people; a text, facts with their names, or what rich prints.
        document: for programs.
    """
    context = click.get_current_context()
    context.meta[_FILES] = document.get("files", ())
    with _printing():
        if talk.as_json:
            text = json.dumps(finite(document), indent=2, ensure_ascii=False)
            click.echo(text, file=context.meta.get(RESULTS))
        else:
            _show_to_people(view)


def _show_to_people(view: Any) -> None:
    if isinstance(view, str):
        click.echo(presentable(view))
        return
    from fxrebasin.facts import facts_text
    from fxrebasin.terminal import output_console

    console = output_console()
    if isinstance(view, list):
        shown = [(presentable(name), presentable(str(value))) for name, value in view]
        click.echo(facts_text(shown, console.width if console.is_terminal else None))
    else:
        console.print(view)


@contextmanager
def _printing() -> Iterator[None]:
    """Tell an output that takes nothing more from a command that did nothing.

    Raises:
        InputError: it does not; what the command wrote is complete all the same.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        context = click.get_current_context(silent=True)
        files: Sequence[str] = () if context is None else context.meta.get(_FILES, ())
        complete = f"; complete and in their places are: {', '.join(files)}" if files else ""
        raise InputError(f"the result cannot be printed: {error.strerror}{complete}") from error


def finite(value: Any) -> Any:
    """A document as JSON can hold it: numbers that are not finite become null.

    Args:
        value: dictionaries, lists, texts and numbers.

    Example:
        >>> finite({"loss": float("nan"), "steps": (1, 2)})
        {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
