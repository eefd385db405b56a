"""Standard output for results alone, whatever the code of a model prints."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import TextIO

import click

from fxrebasin.errors import FxRebasinWarning

_STDIN, _STDOUT, _STDERR = 0, 1, 2


def use_standard_streams() -> None:
    """Let characters that an output cannot encode become question marks, not an error.

    An output that is closed takes what is printed and throws it away. Left closed, its number would
    go to the next file that is opened, and what libraries print into that file.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


@contextmanager
def results_apart() -> Iterator[TextIO]:
    """A stream for results; all else that is printed goes to standard error for as long.

    That of other languages and of processes that are started goes there too, if standard output is
    that of the process.
    """
    ours = sys.stdout
    ours.flush()
    try:
        direct = ours.fileno() == _STDOUT
    except (OSError, ValueError):  # a stream in memory
        direct = False
    if not direct:
        with redirect_stdout(sys.stderr):
            yield ours
        return
    kept = os.dup(_STDOUT)
    results = os.fdopen(os.dup(kept), "w", encoding=ours.encoding, errors="replace")
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield results
    finally:
        with contextlib.suppress(OSError):  # told where it was printed, which flushes
            results.close()
        ours.flush()  # of those who kept the stream
        os.dup2(kept, _STDOUT)
        os.close(kept)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of ours as a line on standard error, without the line of code that they are from."""
    of_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, FxRebasinWarning):
            of_others(message, category, filename, lineno, file, line)
            return
        with contextlib.suppress(OSError):  # nothing can be said there
            click.echo(f"Warning: {message}", file=file, err=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = of_others


def drop_what_cannot_be_printed() -> None:
    """Throw away what an output does not take: Python would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = _nowhere()
