"""Print by how many bytes the memory of this process grows at most while it solves.

    python matching_memory.py MODEL STATES THREADS

STATES is a file of `torch.save((state_a, state_b, classes), file)`. A small matching comes first,
so that libraries have what they allocate once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import fxrebasin
from benchmarks.support.matching_models import build, mlp
from benchmarks.support.matching_ours import Pair


def main(name: str, states: str, threads: str) -> None:
    """Measure and print."""
    torch.set_num_threads(int(threads))
    state_a, state_b, classes = torch.load(states)
    warm = [mlp(256, 2) for _ in "ab"]
    symmetry = fxrebasin.analyze(warm[0], torch.zeros(2, 1, 28, 28))
    Pair(symmetry, warm[0].state_dict(), warm[1].state_dict()).solve()
    model, images = build(name)
    pair = Pair(fxrebasin.analyze(model, images), state_a, state_b, classes)
    del model
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
