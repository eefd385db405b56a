"""How a command ends: which code, and what is said, for whatever was raised in it."""

from __future__ import annotations

import errno
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from fxrebasin.errors import EquivalenceError, ExportError, FxRebasinError
from fxrebasin.wording import escaped

CHECK_FAILED = 1
BAD_INPUT = 2
OUR_FAULT = 3
INTERRUPTED = 130
CLOSED = 141
TERMINATED = 143

_REPORT = (
    "This is a fault of fxrebasin, not of yours. Please report it where you got fxrebasin from "
    "(SECURITY.md says how, and what may stay private), with the command and what it prints with "
    "--debug."
)


@dataclass(frozen=True)
class Ending:
    """A code, and what is said on standard error."""

    code: int
    message: str


@dataclass
class Interrupts:
    """Whether the process was asked to stop, or to end; code may raise the same by itself."""

    asked_to_stop: bool = False
    asked_to_end: bool = False


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Note what SIGINT asks for, and let SIGTERM clean up; signals of others stay theirs."""
    state = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        state.asked_to_stop = True
        signal.default_int_handler(number, frame)

    def terminate(number: int, frame: FrameType | None) -> None:
        state.asked_to_end = True
        raise SystemExit(TERMINATED)  # cleans up as errors do

    known = {
        signal.SIGINT: (signal.default_int_handler, interrupt),
        signal.SIGTERM: (signal.SIG_DFL, terminate),
    }
    ours = {
        number: handler
        for number, (default, handler) in known.items()
        if signal.getsignal(number) is default
    }
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(error: BaseException, state: Interrupts) -> Ending | None:
    """What an exception means for whoever runs the command; None if it is not ours to tell.

    Args:
        error: that ended a command.
        state: of this run.
    """
    if isinstance(error, FxRebasinError):
        failed = isinstance(error, EquivalenceError | ExportError)
        return Ending(CHECK_FAILED if failed else BAD_INPUT, f"Error: {error}")
    if isinstance(error, SystemExit) and state.asked_to_end:
        return Ending(TERMINATED, "Terminated; nothing was left half written.")
    if isinstance(error, KeyboardInterrupt) and state.asked_to_stop:
        return Ending(INTERRUPTED, "Interrupted; nothing was left half written.")
    if _is_closed(error) or (isinstance(error, SystemExit) and _is_closed(error.__context__)):
        return Ending(CLOSED, "")  # nobody reads on; click would say that a check failed
    place = _place_outside(error.__traceback__)
    what = _in_words(error)
    if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
        where = place or "code that was run for this command"
        return Ending(
            BAD_INPUT,
            f"Error: {where} ended the process with {what}, so that nothing was done. Code that is "
            "to run only as a program belongs under `if __name__ == '__main__':`.",
        )
    if place is not None:
        return Ending(
            BAD_INPUT, f"Error: {place} raised {what}\nThe whole traceback is shown with --debug."
        )
    if _out_of_memory(error):
        return Ending(
            BAD_INPUT,
            f"Error: there is not enough memory ({what}); see --dry-run for what it takes.",
        )
    if isinstance(error, OSError):
        return Ending(BAD_INPUT, f"Error: the system refused: {what}")
    if isinstance(error, Exception):
        return Ending(OUR_FAULT, f"Error: {what}\n{_REPORT}")
    return None


def _is_closed(error: BaseException | None) -> bool:
    """Whether an error says that an output is closed; rich ends the process when it meets one."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch found no memory; torch is not loaded to find that out."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fxrebasin.running.messages import out_of_memory

    return out_of_memory(error)


def _in_words(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else escaped(repr(error.code), 80)})"
    lines = "".join(traceback.format_exception_only(type(error), error)).strip()
    return escaped(lines, 500)


def _place_outside(trace: TracebackType | None) -> str | None:
    """The last line of code in a traceback that is neither ours nor of an installed package."""
    places = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith("<")
    ]
    outside = [f"{path}:{line}" for path, line in places if not _is_installed(path)]
    return outside[-1] if outside else None


def _is_installed(path: Path) -> bool:
    """Whether a file is of this package, of another one, or of Python."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib", "scripts")]
    return any(path.is_relative_to(root) for root in (*roots, *_own_folders()))


def _own_folders() -> Iterator[Path]:
    for name in ("fxrebasin", "fxrebasin.passes", "fxrebasin.exporters"):
        if name in sys.modules:
            yield from map(Path, sys.modules[name].__path__)
