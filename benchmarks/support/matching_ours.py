"""What the matching benchmark measures of fxrebasin itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.matching_floor import Floor, recorded
from fxrebasin.passes.match.methods import match_states
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.result import MatchResult
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.weight_search import WeightSearch
from fxrebasin.symmetry import Symmetry

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Two states of one network, and what is known of its symmetry.

    Args:
        symmetry: of the network.
        state_a: of the reference.
        state_b: of the model that is permuted.
        classes: names of those that may move; None for all.
    """

    symmetry: Symmetry
    state_a: State
    state_b: State
    classes: Collection[str] | None = None

    def match(self) -> MatchResult:
        """Everything that a user waits for after the analysis."""
        return match_states(
            self.symmetry,
            self.state_b,
            self.state_a,
            parameters=self.symmetry.parameters,
            classes=self.classes,
        )

    def solve(self, clock: Any = time.perf_counter) -> float:
        """Seconds of the solver alone: from two states to permutations."""
        problem = MatchingProblem(
            self.symmetry,
            self.state_b,
            self.state_a,
            self.symmetry.parameters,
            classes=self.classes,
        ).weights
        start: float = clock()
        search = WeightSearch(problem, seed=0)
        search.start_all(search.usual_starts())
        return float(clock()) - start

    def floor(self, clock: Any = time.perf_counter) -> Floor:
        """Of the solver's products and assignments."""
        with recorded(clock) as floor:
            self.solve(clock)
        return floor

    @property
    def allowed_bytes(self) -> int:
        """Twice the parameters of the largest class, and its cost matrix.

        Parameters are those of one model; the cost matrix is in float32.
        """
        parameters = self.symmetry.parameters
        size = {name: self.state_b[name].nbytes for name in parameters}
        moving = self.classes
        return max(
            2 * sum(size[tensor] for tensor in {t for t, _ in c.axes if t in size}) + 4 * c.size**2
            for c in self.symmetry.classes
            if moving is None or c.name in moving
        )


def shared_classes(symmetry: Symmetry, classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of our classes that a peer has as well: they hold an axis that one of its classes has.

    Args:
        symmetry: ours.
        classes: the peer's: `size`, and `axes` as pairs of tensor and axis.
    """
    axes = {(name, axis): c["size"] for c in classes for name, axis in c["axes"]}
    return [c.name for c in symmetry.classes if any(axes.get(at) == c.size for at in c.axes)]


def recovered(pair: Pair, noise: float, seed: int) -> float:
    """The share of units that are found again in a planted copy of the reference with noise.

    Args:
        pair: whose reference is copied.
        noise: standard deviation of the noise, as a share of that of each parameter.
        seed: of the planted permutation and the noise.
    """
    symmetry, generator = pair.symmetry, torch.Generator().manual_seed(seed)
    planted = symmetry.random(seed)
    state_b = planted.permute_state_dict(dict(pair.state_a))
    for name in symmetry.parameters:
        tensor = state_b[name]
        deviation = tensor.std(correction=0) if tensor.numel() > 1 else 0.0
        state_b[name] = tensor + noise * deviation * torch.randn(tensor.shape, generator=generator)
    return _alike(Pair(symmetry, pair.state_a, state_b).match().permutation, planted.inverse())


def _alike(found: Permutation, wanted: Permutation) -> float:
    same = sum(np.count_nonzero(a == wanted.arrays[n]) for n, a in found.arrays.items())
    return float(same) / sum(array.size for array in found.arrays.values())


def peak_bytes(name: str, pair: Pair) -> int | None:
    """The most memory that the solver holds beyond both states, in a process of its own.

    Args:
        name: of the network, for that process to build.
        pair: to match.

    Returns:
        None where the system does not tell.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.pt"
        torch.save((dict(pair.state_a), dict(pair.state_b), pair.classes), path)
        script = Path(__file__).with_name("matching_memory.py")
        command = [sys.executable, str(script), name, str(path), str(torch.get_num_threads())]
        # What is freed goes back to the system at once, as what is held counts, not what malloc
        # keeps for later.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return int(json.loads(done.stdout.splitlines()[-1]))
