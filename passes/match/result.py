"""What every matching method returns."""

from __future__ import annotations

from dataclasses import dataclass

from fxrebasin.permutation import Permutation


@dataclass(frozen=True)
class MatchResult:
    """A permutation and what it achieves; `MatchingProblem.result` makes it.

    Args:
        permutation: brings the model towards the reference.
        objective_before: sum over the compared tensors of the inner product of both models.
        objective_after: the same with the permuted model.
        distance_before: Euclidean distance of the compared tensors of both models.
        distance_after: the same with the permuted model.
        sweeps: of the solver: sweeps over the classes, steps or epochs.
        seconds: that matching took.
        notes: what a user of the permutation should know, in words.
    """

    permutation: Permutation
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: float
    notes: tuple[str, ...] = ()
