"""Run `rebasin` on two trained networks; started as a script in an environment that has it.

    python rebasin_process.py REQUEST RESULT THREADS

REQUEST is a file of `torch.save`: `kind` and `settings` of the network, states `a` and `b`,
`inputs` and `seed`. RESULT becomes one with the permuted `b` and what was measured.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.experiments.networks import build
from benchmarks.support.matching_peer import solve


def main(request: str, result: str, threads: str) -> None:
    """Solve to convergence, and save what came of it."""
    torch.set_num_threads(int(threads))
    wanted = torch.load(request)
    torch.manual_seed(wanted["seed"])
    model_a = build(wanted["kind"], wanted["settings"]).eval()
    model_b = copy.deepcopy(model_a)
    model_a.load_state_dict(wanted["a"])
    model_b.load_state_dict(wanted["b"])
    with contextlib.redirect_stdout(io.StringIO()):
        found = solve(model_a, model_b, wanted["inputs"])
    found["b"] = model_b.state_dict()
    torch.save(found, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
