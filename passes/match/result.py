"""What every matching method returns."""

from __future__ import annotations

from dataclasses import dataclass

from fxrebasin.alignment import Alignment
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

    @property
    def certificate(self) -> Permutation:
        """What is applied to the model."""
        return self.permutation


@dataclass(frozen=True)
class AlignmentResult:
    """What matching over the groups returns; its figures are those of `MatchResult`.

    Args:
        certificate: brings the model towards the reference.
        objective_before: see `MatchResult`.
        objective_after: see `MatchResult`.
        distance_before: see `MatchResult`.
        distance_after: see `MatchResult`.
        sweeps: see `MatchResult`.
        seconds: see `MatchResult`.
        notes: see `MatchResult`.
    """

    certificate: Alignment
    objective_before: float
    objective_after: float
    distance_before: float
    distance_after: float
    sweeps: int
    seconds: float
    notes: tuple[str, ...] = ()
