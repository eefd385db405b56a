"""What commands print: for people on a terminal or in a log, or one JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import click

from fxrebasin.cli.options import RESULTS, Talk
from fxrebasin.wording import presentable


def say(talk: Talk, text: str) -> None:
    """A line for people; where JSON is asked for, it goes to standard error.

    Args:
        talk: what is printed.
        text: the line.
    """
    click.echo(presentable(text.replace("\n", "\\n")), err=talk.as_json)


def show(talk: Talk, view: Any, document: Mapping[str, Any]) -> None:
    """The result of a command.

    Args:
        talk: what is printed.
        view: for people; a text, facts with their names, or what rich prints.
        document: for programs.
    """
    if talk.as_json:
        results = click.get_current_context().meta.get(RESULTS)
        click.echo(json.dumps(finite(document), indent=2, ensure_ascii=False), file=results)
        return
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
