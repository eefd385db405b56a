"""Tables on standard output; progress on standard error, and only for people."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

# Where there is no terminal there is no width to respect: nothing may be cut from a log.
LOG_WIDTH = 200


def output_console() -> Console:
    """A console for results, on standard output.

    Example:
        >>> output_console().stderr
        False
    """
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def progress_bar(console: Console | None = None) -> Progress:
    """A progress display, to be used as a context manager; silent if there is no terminal.

    Args:
        console: where to draw; standard error when left out.

    Example:
        >>> with progress_bar() as progress:
        ...     task = progress.add_task("training", total=2)
        ...     progress.advance(task)
    """
    console = console or Console(stderr=True)
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
