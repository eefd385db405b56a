"""Frank-Wolfe on the relaxed weight objective (C2M3, Crisostomi et al. 2024, arXiv:2405.17897).

Each step looks for the corner in the direction of the gradient, which takes one linear assignment
for every matrix, and goes as far towards it as is best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from fxrebasin.solvers.assignment import assign_batch
from fxrebasin.solvers.relaxed import Maps

# A step that gains less than this share of the scale of the objective is the last one.
_LEAST_GAIN = 1e-7


class Objective(Protocol):
    """A polynomial in soft maps, of which a maximum is wanted."""

    @property
    def degree(self) -> int:
        """Its degree along any line."""

    @property
    def scale(self) -> float:
        """A bound on its values, which gains are compared with."""

    def value(self, maps: Maps) -> float:
        """Its value.

        Args:
            maps: doubly stochastic matrices.
        """

    def gradient(self, maps: Maps) -> tuple[float, dict[str, torch.Tensor]]:
        """Its value and derivatives.

        Args:
            maps: doubly stochastic matrices.
        """


class FrankWolfe:
    """An ascent from a point inside; `maps` is where it stands.

    Args:
        relaxation: the objective.
        maps: where to start.
    """

    def __init__(self, relaxation: Objective, maps: Maps) -> None:
        self.relaxation = relaxation
        self.maps = dict(maps)
        self.steps = 0

    def run(self, most_steps: int, deadline: float, report: Callable[[int], None]) -> None:
        """Go on until nothing is gained.

        Args:
            most_steps: the most steps to make.
            deadline: on the clock of `time.perf_counter`; no step begins after it.
            report: called after every step with their number.
        """
        while self.steps < most_steps and time.perf_counter() < deadline:
            self.steps += 1
            if not self._step():
                break
            report(self.steps)

    def _step(self) -> bool:
        """One step; returns whether it gained anything."""
        value, gradient = self.relaxation.gradient(self.maps)
        corner = self._corner(gradient)
        ways = {name: corner[name] - here for name, here in self.maps.items()}
        length, gain = self._best_length(value, ways)
        self.maps = {name: here + length * ways[name] for name, here in self.maps.items()}
        return gain > _LEAST_GAIN * self.relaxation.scale

    def _corner(self, gradient: Maps) -> dict[str, torch.Tensor]:
        """The corner that collects most of the gradient."""
        corner = {}
        for name, slopes in gradient.items():
            n = slopes.shape[-1]
            chosen = assign_batch(slopes.reshape(-1, n, n).cpu().numpy())
            hot = torch.nn.functional.one_hot(torch.from_numpy(chosen), n)
            corner[name] = hot.to(slopes).reshape(slopes.shape)
        return corner

    def _best_length(self, value: float, ways: Maps) -> tuple[float, float]:
        """The step in [0, 1] that gains most, and what it gains.

        Along a line the objective is a polynomial: its value here and as many others as its degree
        determine it.
        """
        degree = self.relaxation.degree
        lengths = np.arange(degree + 1) / max(degree, 1)
        values = [value] + [
            self.relaxation.value({n: here + t * ways[n] for n, here in self.maps.items()})
            for t in lengths[1:]
        ]
        line = np.polynomial.Polynomial.fit(lengths, values, degree, domain=[0, 1], window=[0, 1])
        roots = np.asarray(line.deriv().roots(), dtype=complex)
        turns = [float(root.real) for root in roots if abs(root.imag) < 1e-9]
        tried = [0.0, 1.0, *(t for t in turns if 0 < t < 1)]
        best = max(tried, key=lambda t: float(line(t)))
        return best, float(line(best)) - value
