"""Barriers by setting, seed, line and treatment, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, TypeVar

from fxrebasin.colours import Meaning
from fxrebasin.merge import BarrierCurve

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)

BEFORE, AFTER, OWN = "A to B", "A to rebased B", "B to rebased B"
PLAIN, RECALIBRATED, REPAIRED = "as it is", "recalibrated", "REPAIR"


@dataclass(frozen=True)
class Line:
    """The models on a line between two networks.

    Args:
        setting: what the experiment varies, such as a weight decay.
        seed: of the pair.
        name: which line.
        treatment: of the models on it.
        curve: losses in nats, accuracies from 0 to 1.
        meaning: where name and treatment do not say it.
    """

    setting: str
    seed: int
    name: str
    treatment: str
    curve: BarrierCurve
    meaning: Meaning | None = None

    @property
    def barrier(self) -> float:
        """In nats."""
        return self.curve.barrier

    def points(self) -> list[dict[str, Any]]:
        """One row per model on the line."""
        accuracies = self.curve.accuracies or [None] * len(self.curve.losses)
        return [
            {**self._key(), "t": t, "loss": loss, "accuracy": accuracy}
            for t, loss, accuracy in zip(
                self.curve.positions, self.curve.losses, accuracies, strict=True
            )
        ]

    def row(self) -> dict[str, Any]:
        """Barrier, midpoint and ends."""
        loss, accuracy = self.curve.midpoint
        accuracies = self.curve.accuracies or (None,)
        return {
            **self._key(),
            "barrier": self.barrier,
            "midpoint_loss": loss,
            "midpoint_accuracy": accuracy,
            "loss_a": self.curve.losses[0],
            "loss_b": self.curve.losses[-1],
            "accuracy_a": accuracies[0],
            "accuracy_b": accuracies[-1],
        }

    def _key(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "seed": self.seed,
            "line": self.name,
            "treatment": self.treatment,
        }


_MEANINGS = {
    (BEFORE, PLAIN): Meaning.UNTOUCHED,
    (BEFORE, RECALIBRATED): Meaning.UNTOUCHED_RECALIBRATED,
    (AFTER, PLAIN): Meaning.REBASED,
    (AFTER, RECALIBRATED): Meaning.RECALIBRATED,
    (AFTER, REPAIRED): Meaning.REPAIRED,
}


def meaning_of(line: Line) -> Meaning:
    """What a line is, which decides its colour; what is none of the usual ones is a control."""
    return line.meaning or _MEANINGS.get((line.name, line.treatment), Meaning.CONTROL)


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by key, in the order of their first appearance.

    Example:
        >>> grouped([1, 2, 3], lambda n: n % 2)
        {1: [1, 3], 0: [2]}
    """
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def chosen(lines: Iterable[Line], name: str, treatment: str | None = None) -> list[Line]:
    """The lines of one name, and of one treatment if that is given."""
    return [line for line in lines if line.name == name and treatment in (None, line.treatment)]


def barriers(lines: Iterable[Line], name: str, treatment: str | None = None) -> list[float]:
    """Of the lines of one name, in nats."""
    return [line.barrier for line in chosen(lines, name, treatment)]


def end_accuracies(lines: Iterable[Line]) -> list[float]:
    """Of A and of B for every line."""
    ends = [
        (line.curve.accuracies[0], line.curve.accuracies[-1])
        for line in lines
        if line.curve.accuracies
    ]
    return [value for pair in ends for value in pair]


def mean_of(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return mean(values) if values else float("nan")
