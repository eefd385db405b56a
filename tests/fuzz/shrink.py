"""Makes a failing program smaller while it keeps failing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.generate import FORMS
from tests.fuzz.grammar.registry import GRAMMAR
from tests.fuzz.program import Built, Program, Step, float64
from tests.fuzz.scope import DoesNotFit, build

ATTEMPTS = 600


def shrink(built: Built, fails: Callable[[Built], bool], attempts: int = ATTEMPTS) -> Built:
    """The smallest program found that still fails.

    Args:
        built: a program that fails.
        fails: whether a program fails in the same way.
        attempts: programs to try at most.
    """
    best = built
    tried: set[Program] = {built.program}
    progress = True
    while progress:
        progress = False
        for candidate in _smaller(best.program):
            if candidate in tried:
                continue
            tried.add(candidate)
            if len(tried) > attempts:
                return best
            again = _built(candidate)
            if again is not None and _size(again) < _size(best) and fails(again):
                best, progress = again, True
                break
    return best


def _built(program: Program) -> Built | None:
    try:
        with float64():
            return build(program, GRAMMAR, FORMS)
    except DoesNotFit:
        return None


def _size(built: Built) -> tuple[float, ...]:
    """What is to become smaller, the most annoying first."""
    program = built.program
    return (
        len(built.lines) + len(built.state),
        len(program.steps),
        sum(len(line) for line in (*built.lines, *built.state)),
        math.prod(program.shape),
        sum(sum(step.draws) for step in program.steps),
        sum(len(step.operands) for step in program.steps if step.operands != ("x",)),
    )


def _smaller(program: Program) -> Iterator[Program]:
    """Programs that differ in one way, the largest differences first."""
    yield from _with_fewer_results(program)
    yield from _without_steps(program)
    yield from _with_smaller_input(program)
    yield from _with_earlier_operands(program)
    yield from _with_lower_draws(program)


def _with_fewer_results(program: Program) -> Iterator[Program]:
    if program.form != "tensor":
        yield replace(program, form="tensor")
    if program.vocabulary:
        yield replace(program, vocabulary=0)
    if len(program.returned) > 1:
        for name in program.returned:
            yield replace(program, returned=(name,))


def _without_steps(program: Program) -> Iterator[Program]:
    for index in reversed(range(len(program.steps))):
        gone = program.steps[index]
        rest = (*program.steps[:index], *program.steps[index + 1 :])
        yield replace(program, steps=rest)
        for name in dict.fromkeys((*gone.operands, "x")):
            yield _renamed(replace(program, steps=rest), f"v{gone.uid}", name)


def _renamed(program: Program, prefix: str, name: str) -> Program:
    """The results of a step that is gone are those of another."""

    def new(old: str) -> str:
        return name if old == prefix or old.startswith(f"{prefix}_") else old

    steps = tuple(replace(s, operands=tuple(map(new, s.operands))) for s in program.steps)
    returned = tuple(dict.fromkeys(map(new, program.returned)))
    return replace(program, steps=steps, returned=returned)


def _with_smaller_input(program: Program) -> Iterator[Program]:
    batch, *rest = program.shape
    for axis in range(len(rest)):
        if len(rest) > 1:
            yield replace(program, shape=(batch, *rest[:axis], *rest[axis + 1 :]))
    for axis, size in enumerate(rest):
        for smaller in range(2, size):
            yield replace(program, shape=(batch, *rest[:axis], smaller, *rest[axis + 1 :]))


def _with_earlier_operands(program: Program) -> Iterator[Program]:
    for index, step in enumerate(program.steps):
        for position, old in enumerate(step.operands):
            earlier = ["x"] + [f"v{other.uid}" for other in program.steps[:index]]
            for name in earlier:
                if name != old:
                    operands = (*step.operands[:position], name, *step.operands[position + 1 :])
                    yield _with_step(program, index, replace(step, operands=operands))


def _with_lower_draws(program: Program) -> Iterator[Program]:
    for index, step in enumerate(program.steps):
        if any(step.draws):
            yield _with_step(program, index, replace(step, draws=()))
    for index, step in enumerate(program.steps):
        for position, drawn in enumerate(step.draws):
            for lower in dict.fromkeys((0, drawn // 2, drawn - 1)):
                if 0 <= lower < drawn:
                    draws = (*step.draws[:position], lower, *step.draws[position + 1 :])
                    yield _with_step(program, index, replace(step, draws=draws))
    if len(program.sizes) > 2:
        yield replace(program, sizes=(2, 3))


def _with_step(program: Program, index: int, step: Step) -> Program:
    return replace(program, steps=(*program.steps[:index], step, *program.steps[index + 1 :]))
