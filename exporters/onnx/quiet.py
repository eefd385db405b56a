"""Keep what torch's exporter prints and logs from the user's terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from fxrebasin.running.switches import TRACING, no_warnings

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Let this thread print, warn and log nothing."""
    with TRACING:  # what other threads put in place of the outputs has to be gone
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        levels = [logger.level for logger in loggers]
        out, err = cast(TextIO, _Mute(sys.stdout)), cast(TextIO, _Mute(sys.stderr))
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with no_warnings(), redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Mute:
    """Drops what its own thread writes; other threads (a progress bar's) go on writing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        muted = threading.get_ident() == self._thread
        return len(text) if muted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
