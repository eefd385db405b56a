"""Several ranks: as threads of this process, and as processes that run a command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).parent.parent.parent
T = TypeVar("T")


class _Room:
    """Where threads meet."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.values: list[Any] = [None] * count


class ThreadRank:
    """One of several threads, which knows of the others what they tell it."""

    def __init__(self, number: int, room: _Room) -> None:
        self.number, self.count = number, len(room.values)
        self._room = room

    def add_up(self, numbers: torch.Tensor) -> None:
        """Put the sum over all threads in the place of the numbers of each."""
        numbers.copy_(torch.stack(self.every(numbers.clone())).sum(0))

    def every(self, value: T) -> list[T]:
        """The values of all threads."""
        self._room.values[self.number] = value
        self._room.barrier.wait(60)
        found = list(self._room.values)
        self._room.barrier.wait(60)
        return found


def in_threads(count: int, work: Callable[[ThreadRank], T]) -> list[T]:
    """What some work comes to in each of several threads."""
    room = _Room(count)
    found: dict[int, T] = {}

    def run(number: int) -> None:
        try:
            found[number] = work(ThreadRank(number, room))
        except BaseException:
            room.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(count)]


def start(
    commands: Sequence[Sequence[str]], folder: Path
) -> list[tuple[subprocess.Popen[str], str]]:
    """Start processes of one run as torchrun does, and wait for them; returns what they wrote."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {
        **os.environ,
        **{"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    return [(process, process.communicate(timeout=540)[0]) for process in processes]
