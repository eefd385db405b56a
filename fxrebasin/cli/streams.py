"""Standard output for results alone, whatever the code of a model prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import TextIO

_STDOUT, _STDERR = 1, 2


def replace_unencodable() -> None:
    """Let characters that an output cannot encode become question marks, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


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
        with redirect_stdout(sys.stderr), results:
            yield results
    finally:
        ours.flush()  # of those who kept the stream
        os.dup2(kept, _STDOUT)
        os.close(kept)


def nobody_reads() -> None:
    """Throw away what is still to be printed: Python would complain at its end."""
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
