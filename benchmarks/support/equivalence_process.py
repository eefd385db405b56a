"""A measurement in a process of its own, which may take so much processor time and no more."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TypeAlias

from benchmarks.support.equivalence_table import Row

Measure: TypeAlias = Callable[[Callable[[Row], None]], Row]
"""Fills a row and returns it; what there is of it goes to the argument on the way."""

_GRACE = 5


def measured_apart(measure: Measure, seconds: int, empty: Row) -> Row:
    """The row of a measurement, or what there was of it when it was stopped.

    Args:
        measure: can be pickled.
        seconds: of processor time.
        empty: what is there if nothing came.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "fxrebasin", "torch", "onnx", "onnxruntime"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(measure, seconds, theirs))
    process.start()
    theirs.close()
    row = empty
    while True:
        try:
            row = ours.recv()
        except EOFError:
            break
    process.join()
    code = process.exitcode or 0
    return row if code == 0 else replace(row, reason=_ended(code, seconds))


def _run(measure: Measure, seconds: int, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + _GRACE))
    sender.send(measure(sender.send))


def _ended(code: int, seconds: int) -> str:
    if code == -signal.SIGXCPU:
        return f"stopped after {seconds} seconds of processor time"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else code}"
