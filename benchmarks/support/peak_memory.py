"""How much memory another process has at most."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

_PAUSE = 0.02
_KIB = 2**10


def peaks_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Bytes that a process has at most until it ends: all, and without files that are mapped.

    What the system says of an ended process counts that which started it as well, whose memory it
    has until it begins to run its program; so it is looked at while it runs.

    Args:
        process: that was started; it is waited for.
    """
    place, ours = Path(f"/proc/{process.pid}"), Path("/proc/self/cmdline").read_bytes()
    most = without_files = 0
    while process.poll() is None:
        if (place / "cmdline").read_bytes() not in (b"", ours):
            most = max(most, _bytes(place, "VmHWM"))
            without_files = max(without_files, _bytes(place, "RssAnon"))
        time.sleep(_PAUSE)
    return most, without_files


def growth_of(command: list[str]) -> dict[str, float]:
    """What a process prints last, with the memory that it took beyond what it had by then.

    Args:
        command: prints numbers by name as JSON, among them `peak` and `own`: what `own_peak` and
            `own_without_files` said before what is to be measured.

    Returns:
        The same, with `memory` for all that was taken since, and `own` without mapped files.

    Raises:
        CalledProcessError: the command failed.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        peak, without_files = peaks_of(process)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        said.seek(0)
        before: dict[str, float] = json.loads(said.read().splitlines()[-1])
    return {**before, "memory": peak - before["peak"], "own": without_files - before["own"]}


def own_peak() -> int:
    """Bytes that this process has had at most, since it began to run its program."""
    return _bytes(Path("/proc/self"), "VmHWM")


def own_without_files() -> int:
    """Bytes that this process has now, without files that are mapped."""
    return _bytes(Path("/proc/self"), "RssAnon")


def _bytes(place: Path, key: str) -> int:
    """A line of the status of a process; 0 where it has no memory any more."""
    lines = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return int(lines[key].split()[0]) * _KIB if key in lines else 0
