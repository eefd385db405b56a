"""How much memory another process has at most."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

_PAUSE = 0.02


def peaks_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Bytes that a process has at most until it ends: all, and without files that are mapped.

    Args:
        process: that was started; it is waited for.
    """
    place = Path(f"/proc/{process.pid}/status")
    most = 0
    while True:
        found, status, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage.ru_maxrss * 1024, most
        lines = dict(line.split(":", 1) for line in place.read_text().splitlines())
        if "RssAnon" in lines:  # it has memory until it ends
            most = max(most, int(lines["RssAnon"].split()[0]) * 1024)
        time.sleep(_PAUSE)
