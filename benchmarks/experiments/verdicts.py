"""Who is lowest on which pair: figures of the experiment `peers`, and what is judged from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.experiments.contestants import OTHERS
from benchmarks.experiments.lines import grouped
from benchmarks.experiments.measure import NO_BARRIER
from benchmarks.support.methods_table import spread

BEST = "best of all"


@dataclass(frozen=True)
class Row:
    """One pair, one method, one treatment.

    Args:
        setting: the networks, in words.
        seed: of the pair.
        method: that matched them.
        treatment: of the models on the line.
        barrier: in nats, above the straight line between the losses of A and of the B that was
            trained, so that a method that changes the function of B is not helped by it.
        midpoint_loss: held-out, nats.
        midpoint_accuracy: 0 to 1.
        seconds: of the processor, that matching took.
    """

    setting: str
    seed: int
    method: str
    treatment: str
    barrier: float
    midpoint_loss: float
    midpoint_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Who is lowest on one pair.

    Args:
        setting: the networks, in words.
        seed: of the pair.
        treatment: of the models on the line; "best of all" takes each side's best.
        ours: the lowest barrier of ours, in nats, and the method.
        others: likewise, of all others.
    """

    setting: str
    seed: int
    treatment: str
    ours: tuple[float, str]
    others: tuple[float, str]

    @property
    def outcome(self) -> str:
        """In a word."""
        if max(self.ours[0], self.others[0]) < NO_BARRIER:
            return "zero for both"
        return "ours" if self.ours[0] < self.others[0] else "others"


@dataclass(frozen=True)
class Chance:
    """What a method that was lowest on one pair reaches from other orders of B's units.

    Args:
        setting: the networks, in words.
        seed: of the pair.
        method: that was lowest.
        treatment: of the models on the line.
        barriers: in nats, from random orders.
        ours: our lowest on this pair.
    """

    setting: str
    seed: int
    method: str
    treatment: str
    barriers: tuple[float, ...]
    ours: float

    def __str__(self) -> str:
        ahead = sum(barrier < self.ours for barrier in self.barriers)
        lucky = ": the order that B came in was a lucky one."
        return (
            f"Why another is lowest on {self.setting}, pair {self.seed}: from "
            f"{len(self.barriers)} random orders of B's units, {self.method} with "
            f"{self.treatment} leaves {spread(self.barriers, '.4f')}, which is below our "
            f"{self.ours:.4f} in {ahead} of them{lucky if 2 * ahead < len(self.barriers) else '.'}"
        )


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Who is lowest, for every pair and treatment, and with each side's best treatment.

    Args:
        rows: of all methods.
    """
    found = []
    for (setting, seed), same in grouped(rows, lambda r: (r.setting, r.seed)).items():
        by_treatment = {**grouped(same, lambda r: r.treatment), BEST: same}
        for treatment, these in by_treatment.items():
            ours, others = (
                min(
                    (row.barrier, f"{row.method}, {row.treatment}")
                    for row in these
                    if (row.method in OTHERS) == other
                )
                for other in (False, True)
            )
            found.append(Verdict(setting, seed, treatment, ours, others))
    return found
