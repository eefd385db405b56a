"""Every side of the matching benchmark on one pair, in turn, the fastest run of each."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.support.matching_environment import run_rebasin
from benchmarks.support.matching_ours import Pair, shared_classes
from benchmarks.support.plain_rebasin import NotPlainError, match_plainly, objective, specify
from fxrebasin.running.messages import first_lines

_LEAST = 1.0


class Contest:
    """What each side took at least, and what it found.

    Args:
        model: name of the network.
        seed: of the peers.
        pair: to match.
        now: the clock.
    """

    def __init__(self, model: str, seed: int, pair: Pair, now: Callable[[], float]) -> None:
        self._model, self._seed, self._pair, self._now = model, seed, pair, now
        self._best: dict[str, float] = {}
        self._found: dict[str, Any] = {}
        self._notes: dict[str, None] = {}

    @property
    def longest(self) -> float:
        """Seconds that the slowest side took."""
        return max(self._best.values())

    def figures(self) -> dict[str, Any]:
        """All figures, by the names that a row has for them."""
        return {**self._best, **self._found, "notes": "; ".join(self._notes)}

    def round(self, peer: Path | None, plain: bool) -> None:
        """Let every side run.

        Args:
            peer: the interpreter that has rebasin, if it takes part.
            plain: whether plain git-re-basin takes part.
        """
        if peer is not None:
            self._rebasin(peer)
        if plain:
            self._plain()
        self._ours()

    def _keep(self, key: str, seconds: float) -> None:
        self._best[key] = min(seconds, self._best.get(key, seconds))

    def _time(self, **calls: Callable[[], float]) -> None:
        """Call each in turn, short ones again and again."""
        end = time.perf_counter() + _LEAST * len(calls)
        while True:
            for key, call in calls.items():
                self._keep(f"{key}_seconds", call())
            if time.perf_counter() >= end:
                return

    def _rebasin(self, peer: Path) -> None:
        """The library, in a process of its own, and ours with its classes."""
        pair = self._pair
        try:
            found = run_rebasin(peer, self._model, pair.state_a, pair.state_b, seed=self._seed)
        except subprocess.CalledProcessError as error:
            self._notes[f"rebasin failed: {first_lines(RuntimeError(error.stderr))}"] = None
            return
        prefix = "cpu_" if self._now is time.process_time else ""
        self._keep("rebasin_seconds", found[f"{prefix}seconds"])
        self._keep("rebasin_graph_seconds", found["graph_seconds"])
        self._found |= {f"rebasin_{k}": found[k] for k in ("sweeps", "objective", "error")}
        shared = shared_classes(pair.symmetry, found["classes"])
        part = replace(pair, classes=shared)
        self._time(shared=partial(part.solve, self._now))
        self._found["shared_classes"] = len(shared)
        if "shared_objective" not in self._found:
            self._found["shared_objective"] = part.match().objective_after

    def _plain(self) -> None:
        """The published algorithm with our classes."""
        symmetry, a, b = self._pair.symmetry, self._pair.state_a, self._pair.state_b
        try:
            wanted = specify(symmetry.classes, symmetry.layout, symmetry.parameters)
        except NotPlainError as error:
            self._notes[str(error)] = None
            return

        def solve() -> float:
            start = self._now()
            found = match_plainly(wanted, a, b, self._seed)
            seconds = self._now() - start
            self._found["plain_sweeps"] = found.sweeps
            self._found["plain_objective"] = objective(
                wanted, found.arrays, a, b, symmetry.parameters
            )
            return seconds

        self._time(plain=solve)

    def _ours(self) -> None:
        """Solving, its floor, and all that a user waits for after the analysis."""
        pair = self._pair
        self._time(ours=partial(pair.solve, self._now), floor=lambda: pair.floor(self._now).seconds)
        start = self._now()
        result = pair.match()
        self._keep("match_seconds", self._now() - start)
        self._found |= {"ours_sweeps": result.sweeps, "ours_objective": result.objective_after}
