"""Draws programs."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import tests.fuzz.grammar  # noqa: F401  (importing it fills the table)
from tests.fuzz.grammar.registry import ENDINGS, GRAMMAR
from tests.fuzz.program import Program, Step
from tests.fuzz.scope import DoesNotFit, Form, Scope

SIZES = (2, 3, 4, 5, 6, 3, 4)
FEW_SIZES = (2, 3)
"""For programs whose permutations can all be tried."""

OFTEN = ("from_rules",) * 8 + ("parameter", "shared_vector", "shared_by_groups") * 2
"""Steps that are drawn more often than others, for there is much in them."""

ATTEMPTS = 8
"""Steps that are drawn where one is wanted, for many do not fit."""


def _made(kind: str, names: Sequence[str]) -> str:
    return f"return {kind}({names[0]}, ({', '.join(names[1:])}{',' * (len(names) == 2)}))"


FORMS: dict[str, Form] = {
    "tensor": lambda names: [
        f"return {names[0]}" if len(names) == 1 else f"return {', '.join(names)}"
    ],
    "tuple": lambda names: [f"return ({', '.join(names)},)"],
    "dict": lambda names: [f"return {{{', '.join(f'{n!r}: {n}' for n in names)}}}"],
    "nested": lambda names: [f"return [{{'out': [{', '.join(names)}]}}, None]"],
    "distribution": lambda names: [
        f"return torch.distributions.Normal({names[0]}, 1.0 + {names[0]}.square())"
    ],
    "named tuple": lambda names: [_made("Pair", names)],
    "dataclass": lambda names: [_made("Record", names)],
    "slots": lambda names: [_made("Slotted", names)],
    "object": lambda names: [
        f"return types.SimpleNamespace({', '.join(f'{n}={n}' for n in names)})"
    ],
}


@dataclass(frozen=True)
class Words:
    """What programs are drawn from: names of steps, of steps to end with, and of forms."""

    steps: tuple[str, ...] = (*GRAMMAR, *OFTEN)
    endings: tuple[str, ...] = tuple(ENDINGS)
    forms: tuple[str, ...] = tuple(FORMS)

    def without(self, names: Collection[str]) -> Words:
        """Those that are left when some are not used."""
        return Words(
            *(
                tuple(name for name in words if name not in names)
                for words in (self.steps, self.endings, self.forms)
            )
        )


ALL = Words()


def generate(seed: str, few: bool = False, words: Words = ALL) -> Program:
    """A program; the same for the same seed in every process.

    Args:
        seed: any text.
        few: whether it is to be so small that all permutations can be tried.
        words: what it is drawn from.
    """
    choose = random.Random(seed)
    number = choose.randrange(1 << 16)
    sizes = FEW_SIZES if few else SIZES
    shape = (3, *(choose.choice(sizes) for _ in range(choose.choice((1, 1, 2, 2, 3)))))
    vocabulary = choose.choice(sizes) + 2 if choose.random() < 0.15 else 0
    steps: list[Step] = []
    scope = Scope(number, sizes, shape, vocabulary)
    for _ in range(choose.choice((1, 2, 2, 3) if few else (2, 3, 4, 5, 6, 7))):
        scope = _extend(scope, steps, words.steps, choose)
    returned = _end(scope, steps, words.endings, choose)
    form = choose.choice(words.forms) if choose.random() < 0.3 else "tensor"
    return Program(number, sizes, shape, tuple(steps), returned, form, vocabulary)


def _again(scope: Scope, steps: Sequence[Step]) -> Scope:
    """A scope in which some steps were executed, and nothing else."""
    scope = Scope(scope.seed, scope.sizes, scope.shape, scope.vocabulary)
    for step in steps:
        scope.add(step, GRAMMAR[step.op], None)
    return scope


def _extend(
    scope: Scope, steps: list[Step], names: Sequence[str], choose: random.Random, last: str = ""
) -> Scope:
    """Add a step; returns the scope, a new one if steps had to be undone."""
    for _ in range(ATTEMPTS):
        op = choose.choice(names)
        operands = (last,) if last else ()
        step = Step(1 + max((step.uid for step in steps), default=0), op, operands)
        try:
            steps.append(scope.add(step, GRAMMAR[op], choose))
        except DoesNotFit:
            scope = _again(scope, steps)
        else:
            return scope
    return scope


def _end(
    scope: Scope, steps: list[Step], endings: Sequence[str], choose: random.Random
) -> tuple[str, ...]:
    """End with one or two results, most often of steps that sum over units."""
    names = list(scope.variables)
    wanted = [names[-1]]
    if len(names) > 2 and choose.random() < 0.3:
        wanted.append(choose.choice(names[1:-1]))
    returned = []
    for name in wanted:
        if choose.random() < 0.85:
            before = len(steps)
            scope = _extend(scope, steps, endings, choose, name)
            if len(steps) > before:
                name = list(scope.variables)[-1]
        returned.append(name)
    return tuple(dict.fromkeys(returned))
