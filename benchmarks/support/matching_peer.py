"""Run `rebasin` on two states of a network; started as a script in an environment that has it.

    python matching_peer.py MODEL STATES SEED THREADS

STATES is a file of `torch.save((state_a, state_b), file)`. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.matching_models import build


def main(name: str, states: str, seed: str, threads: str) -> None:
    """Solve to convergence, and print what that took and what came of it."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    state_a, state_b = torch.load(states)
    model_a, images = build(name)
    model_b = copy.deepcopy(model_a)
    model_a.load_state_dict(state_a)
    model_b.load_state_dict(state_b)
    with contextlib.redirect_stdout(io.StringIO()):
        found = solve(model_a, model_b, images)
    sys.stdout.write(json.dumps(found) + "\n")


@torch.no_grad()
def solve(model_a: nn.Module, model_b: nn.Module, images: Tensor) -> dict[str, Any]:
    """Permute `model_b` in place with rebasin, and say what that took and what came of it.

    Args:
        model_a: the reference.
        model_b: is overwritten.
        images: inputs of both.
    """
    from rebasin import PermutationCoordinateDescent

    before = model_b(images)
    start = time.perf_counter()
    descent = PermutationCoordinateDescent(model_a, model_b, images)
    built = time.perf_counter()
    classes = _classes(descent, model_b)
    sweeps = 0
    step = descent._calculate_permutations_step

    def counted(loop: Any) -> Any:
        nonlocal sweeps
        sweeps += 1
        return step(loop)

    descent._calculate_permutations_step = counted
    begin, processor = time.perf_counter(), time.process_time()
    descent.calculate_permutations()
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    descent.apply_permutations()
    after = model_b(images)
    pairs = zip(model_a.parameters(), model_b.parameters(), strict=True)
    return {
        "seconds": seconds,
        "cpu_seconds": processor,
        "graph_seconds": built - start,
        "sweeps": sweeps,
        "objective": sum(float((a * b).sum(dtype=torch.float64)) for a, b in pairs),
        "error": float((after - before).norm() / before.norm()),
        "classes": classes,
    }


def _classes(descent: Any, model: nn.Module) -> list[dict[str, Any]]:
    """Size and axes of every permutation, each axis once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for permutation, infos in descent.pinit.model_graph.permutation_to_info:
        axes = dict.fromkeys((names[id(info.parameter_b)], info.axis) for info in infos)
        found.append({"size": len(permutation), "axes": list(axes)})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
