"""What takes longer than two seconds is told on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

STAGE = """
import time
from fxrebasin.progress import waiting
with waiting("looking for the needle"):
    time.sleep({seconds})
print("done")
"""


def run(seconds: float, *, terminal: bool) -> tuple[str, str]:
    """Standard output and standard error of a stage that takes some seconds."""
    command = [sys.executable, "-c", STAGE.format(seconds=seconds)]
    if not terminal:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    ) as process:
        os.close(theirs)
        output, _ = process.communicate()
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # what Linux says of a terminal that nobody holds any more
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.returncode == 0
    return output, seen.decode()


def test_a_long_stage_is_told_on_a_terminal() -> None:
    output, seen = run(2.8, terminal=True)
    assert "looking for the needle" in seen
    assert output == "done\n"


def test_a_short_stage_is_not() -> None:
    assert run(0.1, terminal=True) == ("done\n", "")


def test_nothing_is_told_where_there_is_no_terminal() -> None:
    assert run(2.8, terminal=False) == ("done\n", "")
