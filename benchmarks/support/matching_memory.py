"""Print by how many bytes the memory of this process grows at most while it solves.

    python matching_memory.py MODEL STATES THREADS

STATES is a file of `torch.save((state_a, state_b, classes), file)`. It solves twice, and the second
time counts: libraries then have what they load and allocate once. Start it with malloc's mmap and
trim thresholds set low, so that what is freed goes back to the system.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import fxrebasin
from benchmarks.support.matching_models import build
from benchmarks.support.matching_ours import Pair


def main(name: str, states: str, threads: str) -> None:
    """Measure and print."""
    torch.set_num_threads(int(threads))
    state_a, state_b, classes = torch.load(states)
    model, images = build(name)
    pair = Pair(fxrebasin.analyze(model, images), state_a, state_b, classes)
    del model
    pair.solve()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    pair.solve()
    sys.stdout.write(f"{max(0, _status('VmHWM') - before)}\n")


def _status(key: str) -> int:
    """A line of the process's own status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
