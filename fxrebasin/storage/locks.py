"""Locks of files and folders, which end with the process that holds them.

Windows has none of this kind: there, what a killed run leaves is not removed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

CAN_LOCK = _fcntl is not None


def lock(file: IO[str] | int, *, wait: bool = True) -> None:
    """Hold what is open until it is closed, unless the system knows no such locks.

    Args:
        file: or the number of an open file or folder.
        wait: for another process that holds it.

    Raises:
        OSError: another process holds it and nobody waits, or the file system has no locks.
    """
    if _fcntl is not None:
        _fcntl.flock(file, _fcntl.LOCK_EX if wait else _fcntl.LOCK_EX | _fcntl.LOCK_NB)


@contextmanager
def alone(folders: Collection[Path]) -> Iterator[None]:
    """Keep other runs from putting files into these folders: sets of two runs do not mix."""
    with ExitStack() as stack:
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
            if CAN_LOCK:
                number = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, number)
                with contextlib.suppress(OSError):  # a file system without locks
                    lock(number)
        yield
