"""Progress of work that may be over at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID

from fxrebasin.terminal import progress_bar

# A progress bar that only flashes by is a nuisance.
_PATIENCE_SECONDS = 2.0


@contextmanager
def waiting(stage: str) -> Iterator[None]:
    """Say on standard error what takes its time, for a stage that does not tell how far it is.

    Nothing is shown for the first two seconds, nor where there is no terminal.

    Args:
        stage: a few words.

    Example:
        >>> with waiting("tracing"):
        ...     graph = None
    """
    bar = progress_bar()
    if bar.disable:
        yield
        return
    lock, over = threading.Lock(), threading.Event()

    def show() -> None:
        with lock:
            if not over.is_set():
                bar.add_task(stage, total=None)
                bar.start()

    timer = threading.Timer(_PATIENCE_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over.set()
        timer.cancel()
        for task in bar.tasks:
            bar.update(task.id, total=1, completed=1)
        bar.stop()


class LateBar:
    """A progress bar on standard error that appears only when there is time to read it.

    Example:
        >>> from contextlib import closing
        >>> with closing(LateBar()) as report:
        ...     report("matching", 1, 2)
    """

    def __init__(self) -> None:
        self._due = time.perf_counter() + _PATIENCE_SECONDS
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None, news: str = "") -> None:
        """Show how far a stage is.

        Args:
            stage: a few words.
            done: number of its steps that are done.
            total: number of all its steps; None if it is not known.
            news: what was found so far, in a few words.
        """
        if time.perf_counter() < self._due:
            return
        if self._bar is None:
            self._bar = progress_bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        words = f"{stage}: {news}" if news else stage
        self._bar.update(self._tasks[stage], completed=done, description=words)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
