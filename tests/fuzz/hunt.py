"""Tries programs for a while, and shrinks those on which something is wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.fuzz.check import Fault, Kind, Verdict, check
from tests.fuzz.generate import ALL, FORMS, Words, generate
from tests.fuzz.grammar.registry import ENDINGS, GRAMMAR
from tests.fuzz.program import Built, float64
from tests.fuzz.scope import build
from tests.fuzz.shrink import shrink

PLANTED = 4
COUNTED = 5
"""One program in so many is matched with a permuted copy, or has all permutations tried."""


@dataclass(frozen=True)
class Finding:
    """A program on which something is wrong, as small as it got."""

    index: int
    built: Built
    fault: Fault
    classes: tuple[str, ...] = ()

    @property
    def cause(self) -> tuple[object, ...]:
        """Alike for programs that fail in the same way, for a first sorting."""
        ops = frozenset(step.op for step in self.built.program.steps) - set(ENDINGS)
        return (self.fault.kind, self.fault.where, ops, self.built.program.form)

    def text(self, seed: int) -> str:
        """The program as a file, with what is wrong in comments."""
        steps = ", ".join(step.op for step in self.built.program.steps)
        return "\n".join(
            [
                f"# Program {self.index} of seed {seed}: {self.fault.kind.value}.",
                f"# {self.fault.detail}",
                f"# Steps: {steps}.",
                *(f"# Class {item}" for item in self.classes),
                self.built.source(),
            ]
        )


@dataclass
class Tally:
    """How many programs were tried, and what came out.

    Attributes:
        tried: programs.
        free: those with at least one class.
        refused: error messages, with their numbers.
        lost: indices of programs whose group is larger than what was found, by how many times.
    """

    tried: int = 0
    free: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    lost: dict[int, int] = field(default_factory=dict)


def drawn(seed: int, index: int, words: Words = ALL) -> Built:
    """The program with some index of a seed."""
    with float64():
        return build(generate(f"{seed}/{index}", _counted(index), words), GRAMMAR, FORMS)


def _counted(index: int) -> bool:
    return index % COUNTED == 0


def judged(built: Built, index: int) -> Verdict:
    """The verdict on the program with some index."""
    return check(built, index % PLANTED == 0, _counted(index))


def hunt(
    seed: int,
    seconds: float,
    tally: Tally,
    most: int | None = None,
    words: Words = ALL,
    watch: Callable[[Tally], None] = lambda tally: None,
) -> Iterator[Finding]:
    """Findings, as they come.

    Args:
        seed: of the programs.
        seconds: when to stop.
        tally: is kept up to date.
        most: programs to try at most.
        words: what they are drawn from.
        watch: called after each program.
    """
    end = time.monotonic() + seconds
    index = 0
    while time.monotonic() < end and (most is None or index < most):
        built = drawn(seed, index, words)
        verdict = judged(built, index)
        tally.tried += 1
        if verdict.refusal:
            tally.refused[verdict.refusal] += 1
        tally.free += bool(verdict.symmetry and verdict.symmetry.classes)
        if verdict.lost > 1:
            tally.lost[index] = verdict.lost
        if verdict.fault is not None:
            yield finding(built, index, verdict.fault)
        watch(tally)
        index += 1


def finding(built: Built, index: int, fault: Fault) -> Finding:
    """A program that fails, shrunk."""
    planted = fault.kind in (Kind.PLANTED, Kind.CRASH) and index % PLANTED == 0
    counted = fault.kind is Kind.ORDER

    def fails(other: Built) -> bool:
        found = check(other, planted, counted).fault
        return found is not None and (found.kind, found.where) == (fault.kind, fault.where)

    small = shrink(built, fails)
    verdict = check(small, planted, counted)
    classes = verdict.symmetry.classes if verdict.symmetry else ()
    listed = tuple(
        f"{c.name}: {c.size} units"
        + (f" per {', '.join(c.within)}" if c.within else "")
        + f", on {', '.join(f'{name}[{axis}]' for name, axis in c.axes)}"
        for c in classes
    )
    return Finding(index, small, verdict.fault or fault, listed)
