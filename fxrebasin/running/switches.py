"""Settings of the whole process that a call needs for a while, also with several threads.

Torch, Python's warnings and its collector have settings that hold for all threads. What one call
sets and puts back, another would put back wrongly if the two overlap. So the first of several calls
sets them, and the last one puts them back.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps


class _Lock:
    """A lock that its thread may take again, and that knows whether the asking thread has it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holders: list[int] = []  # of the one thread that has it, as often as it took it

    @property
    def held(self) -> bool:
        """Whether this thread has the lock."""
        return threading.get_ident() in self._holders

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holders.append(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        self._holders.pop()
        self._lock.release()


TRACING = _Lock()
"""Held while a graph is made: tracers replace methods of `nn.Module` itself, and what they print is
kept from standard output, for all threads."""


def shared(
    setting: Callable[[], AbstractContextManager[object]],
) -> Callable[[], AbstractContextManager[None]]:
    """Make a context manager of a setting one that overlapping users enter and leave together.

    Args:
        setting: sets, and puts back.

    Example:
        >>> @contextmanager
        ... def loud():
        ...     print("on")
        ...     yield
        ...     print("off")
        >>> once = shared(loud)
        >>> with once(), once():
        ...     print("twice")
        on
        twice
        off
    """
    lock, users, entered = threading.Lock(), 0, setting()

    @contextmanager
    @wraps(setting)
    def sharing() -> Iterator[None]:
        nonlocal users, entered
        with lock:
            if users == 0:
                entered = setting()
                entered.__enter__()
            users += 1
        try:
            yield
        finally:
            with lock:
                users -= 1
                if users == 0:
                    entered.__exit__(None, None, None)

    return sharing


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Nothing warns inside, in any thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


no_warnings = shared(_no_warnings)
"""Nothing warns inside, in any thread."""
