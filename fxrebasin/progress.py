"""A progress bar for work that may be over at once."""

from __future__ import annotations

import time

from rich.progress import Progress, TaskID

from fxrebasin.terminal import progress_bar

# A progress bar that only flashes by is a nuisance.
_PATIENCE_SECONDS = 2.0


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

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show how far a stage is.

        Args:
            stage: a few words.
            done: number of its steps that are done.
            total: number of all its steps; None if it is not known.
        """
        if time.perf_counter() < self._due:
            return
        if self._bar is None:
            self._bar = progress_bar()
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._tasks[stage], completed=done)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
