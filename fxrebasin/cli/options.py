"""Options that several commands have, each with one name, one help text and one check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DEBUG = "fxrebasin.debug"

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value


# Of the group and of every command, so that nobody has to remember where it belongs.
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show the traceback of an error.",
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command about a model takes: MODEL, and what its inputs, state and outputs are."""
    shape = click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Shape of an input, such as 1,3,224,224 or input_ids=2,16:int64; once per input, in "
        "order. Inferred from the first layers when left out.",
    )
    buffers = click.option(
        "--state-buffers",
        multiple=True,
        metavar="PATTERN",
        help="Name or pattern, such as '*.weight_u', of buffers to treat as state that may be "
        "permuted; once per pattern.",
    )
    outputs = click.option(
        "--outputs",
        multiple=True,
        callback=_split,
        metavar="NAME[,NAME]",
        help="Names or patterns, as verify prints them, of the outputs that have to stay as they "
        "are; all but caches of keys and values when left out.",
    )
    return click.argument("model")(shape(buffers(outputs(debug_option(command)))))


def _split(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Names with commas between them, or None for none."""
    return tuple(name.strip() for value in values for name in value.split(",")) or None


def output_option(name: str, suffix: str, **attributes: Any) -> Callable[..., Any]:
    """An option for a file to write; another suffix is refused before any work."""

    def check(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and path.suffix != suffix:
            raise click.BadParameter(f"{path} has to end in {suffix}", ctx, parameter)
        return path

    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(name, type=kind, callback=check, metavar=f"FILE{suffix}", **attributes)


def overwrite_option(command: Callable[..., None]) -> Callable[..., None]:
    """Whether files may be replaced."""
    return click.option("--overwrite", is_flag=True, help="Replace files that exist.")(command)
