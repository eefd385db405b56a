"""Recipes: files that say which command is run, with which options.

The options of the commands are the schema: a recipe becomes a command line, with what was written
behind it at the end, and is checked as such.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from fxrebasin.cli.mergekit import is_mergekit, translated
from fxrebasin.errors import InputError

_COMMAND = "command"
_MODEL, _MODELS = "model", "models"


def arguments_of(group: click.Group, recipe: Path, more: Sequence[str]) -> tuple[str, list[str]]:
    """The command that a recipe names, and its arguments.

    Args:
        group: of the commands.
        recipe: a YAML file.
        more: what was written behind it, which wins.

    Raises:
        InputError: the recipe cannot be read, or has a key that the command does not know.
    """
    content = _read(recipe)
    if is_mergekit(content):
        content = translated(content)
    name = content.pop(_COMMAND, None)
    known = [other for other in group.commands if other != "run"]
    if name not in known:
        raise InputError(
            f"{recipe}: {_COMMAND} is {name!r}; it has to be one of {', '.join(known)}"
            f"{_nearest(str(name), known)}"
        )
    command = group.commands[name]
    content = {str(key).replace("_", "-"): value for key, value in content.items()}
    _check_keys(command, content, recipe)
    given = _given(command, more)
    arguments: list[str] = []
    positional: list[str] = []
    for parameter in command.params:
        if parameter.name in given:
            continue
        if isinstance(parameter, click.Argument):
            positional += _positional(parameter, content)
        elif isinstance(parameter, click.Option):
            for key in _keys(parameter):
                if content.get(key) is not None:
                    arguments += _as_options(parameter, key, content[key])
    return name, [*arguments, *more, *(["--", *positional] if positional else [])]


def _read(recipe: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(f"{recipe} is no readable YAML: it is nested too deeply") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe} is no readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{recipe} holds no keys; write such as 'command: merge'")
    return content


def _check_keys(command: click.Command, content: Mapping[str, Any], recipe: Path) -> None:
    known = sorted(key for parameter in command.params for key in _keys(parameter))
    for key in content:
        if key not in known:
            raise InputError(
                f"{recipe}: {command.name} has no {key!r}{_nearest(key, known)}; "
                f"it has: {', '.join(known)}"
            )


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys(parameter: click.Parameter) -> list[str]:
    """What a recipe calls a parameter: an option's long names, or an argument's name."""
    if isinstance(parameter, click.Argument):
        name = str(parameter.name)
        return [_MODEL, _MODELS] if name == _MODELS else [name]
    names = [*parameter.opts, *parameter.secondary_opts]
    hidden = ("--help", "--debug")
    return [name.removeprefix("--") for name in names if name[:2] == "--" and name not in hidden]


def _given(command: click.Command, more: Sequence[str]) -> set[str]:
    """Names of the parameters that were written behind the recipe."""
    context = command.make_context(command.name, list(more), resilient_parsing=True)
    written = click.core.ParameterSource.COMMANDLINE
    names = [str(parameter.name) for parameter in command.params]
    return {name for name in names if context.get_parameter_source(name) is written}


def _positional(parameter: click.Argument, content: Mapping[str, Any]) -> Iterator[str]:
    for key in _keys(parameter):
        value = content.get(key)
        if value is not None:
            yield from map(str, value if isinstance(value, list) else [value])


def _as_options(parameter: click.Option, key: str, value: Any) -> list[str]:
    """An option with its value, as it would be written."""
    option = f"--{key}"
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{key}: {value!r} is neither true nor false")
        turned = [f"--no-{key}"] if f"--no-{key}" in parameter.secondary_opts else []
        return [option] if value else turned
    if isinstance(value, Mapping):
        return [
            word
            for pattern, item in value.items()
            for word in (option, f"{'' if pattern == '*' else f'{pattern}='}{_text(item)}")
        ]
    if parameter.multiple and isinstance(value, list) and key not in ("weights", "input-shape"):
        return [word for item in value for word in (option, _text(item))]
    return [option, _text(value)]


def _text(value: Any) -> str:
    """Numbers in a list get commas between them."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
