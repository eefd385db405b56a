"""Builds programs: statements are written and executed one step at a time.

Executing them on the way gives the shapes that the next steps need, and sorts out what PyTorch
refuses, what is not finite and what has grown too large.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.program import Built, Program, Step, namespace

LARGEST = 400
"""Elements of a variable."""

LOUDEST = 30.0
"""The largest value of a variable: what is much larger drowns what is added to it."""

AXES = 5


class DoesNotFit(Exception):
    """A step cannot be executed where it stands."""


@dataclass
class Scope:
    """The variables and statements of a program that is being built."""

    seed: int
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    vocabulary: int = 0
    variables: dict[str, Tensor] = field(default_factory=dict)
    state: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = namespace(self.seed)
        self.module = nn.Module().eval()
        self.names["self"] = self.module
        program = Program(self.seed, self.sizes, self.shape, (), (), vocabulary=self.vocabulary)
        self.x = value = eval(program.input, self.names)
        if self.vocabulary:
            table = f"randn({self.vocabulary}, {self.shape[-1]})"
            self.module.register_parameter("table", nn.Parameter(eval(table, self.names)))
            self.state.append(f"self.table = nn.Parameter({table})")
            self.lines.append("x = F.embedding(ids, self.table)")
            value = nn.functional.embedding(self.x, self.module.get_parameter("table")).detach()
        self.names["x"] = self.variables["x"] = value

    def add(self, step: Step, emit: Emit, choose: random.Random | None) -> Step:
        """Execute a step; returns it with the choices that were made.

        Raises:
            DoesNotFit: it cannot be executed; the scope may not be used any more unless `choose`
                is given.
        """
        cursor = Cursor(self, step, choose)
        try:
            emit(cursor)
            found = cursor.execute()
        except DoesNotFit:
            raise
        except Exception as error:
            raise DoesNotFit(str(error)) from error
        self.lines += cursor.lines
        self.variables.update(found)
        return Step(step.uid, step.op, tuple(cursor.read), tuple(cursor.drawn))


class Cursor:
    """What a rule of the grammar writes with: it asks for choices and writes statements."""

    def __init__(self, scope: Scope, step: Step, choose: random.Random | None) -> None:
        self.scope, self.step, self.choose = scope, step, choose
        self.operands, self.draws = list(step.operands), list(step.draws)
        self.read: list[str] = []
        self.drawn: list[int] = []
        self.lines: list[str] = []
        self.results: list[str] = []
        self.shapes = {name: tuple(value.shape) for name, value in scope.variables.items()}

    # Choices ----------------------------------------------------------------------------------

    def pick(self, count: int) -> int:
        """A number below `count`; lower ones are simpler."""
        if count < 1:
            raise DoesNotFit("nothing to choose from")
        if self.choose is not None:
            found = self.choose.randrange(count)
        else:
            found = self.draws.pop(0) % count if self.draws else 0
        self.drawn.append(found)
        return found

    def one_of(self, *items: Any) -> Any:
        """One of some things, the simplest first."""
        return items[self.pick(len(items))]

    def flag(self, odds: int = 2) -> bool:
        """True once in `odds` times."""
        return self.pick(odds) == odds - 1

    def some(self, items: Sequence[int], least: int = 1) -> list[int]:
        """A subset, in order."""
        for _ in range(4):
            found = [item for item in items if self.pick(2) == 0]
            if len(found) >= least:
                return found
        return list(items)

    def order(self, count: int) -> list[int]:
        """A permutation; drawing zeros gives the identity."""
        left = list(range(count))
        return [left.pop(self.pick(len(left))) for _ in range(count)]

    def size(self) -> int:
        """The size of a new axis."""
        return int(self.one_of(*self.scope.sizes))

    def operand(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> str:
        """A variable, the latest ones more often."""
        names = [name for name, shape in self.shapes.items() if fits(shape)]
        if not names:
            raise DoesNotFit("no variable fits")
        if self.operands or self.choose is None:
            wanted = self.operands.pop(0) if self.operands else names[-1]
            found = wanted if wanted in names else names[-1]
        else:
            latest = self.choose.random() < 0.6
            found = names[-1] if latest else self.choose.choice(names)
        self.read.append(found)
        return found

    def axis(self, name: str, least: int = 1) -> int:
        """An axis of a variable of at least some size; the last is the simplest."""
        shape = self.shapes[name]
        axes = [axis for axis in reversed(range(len(shape))) if shape[axis] >= least]
        return int(self.one_of(*axes)) if axes else self.pick(0)

    # Statements -------------------------------------------------------------------------------

    def parameter(self, *shape: int, positive: bool = False) -> str:
        """A new parameter, or one of the same shape that there is already."""
        same = [
            name
            for name, value in self.scope.module.named_parameters()
            if tuple(value.shape) == shape and not positive
        ]
        if self.flag(6) and same:
            return f"self.{self.one_of(*same)}"
        if positive:
            return self._hold("p", f"rand({_text(shape)})", True)
        fan_in = max(shape[:-1], default=1) if len(shape) > 1 else 1
        scale = "" if fan_in == 1 else f" / {round(fan_in**0.5, 2)}"
        return self._hold("p", f"randn({_text(shape)}){scale}", True)

    def buffer(self, text: str) -> str:
        """A new buffer with the value of an expression."""
        return self._hold("b", text, False)

    def _hold(self, kind: str, text: str, parameter: bool) -> str:
        name = f"{kind}{len(self.scope.state)}"
        value = eval(text, self.scope.names)
        if value.numel() > LARGEST:
            raise DoesNotFit("too many parameters")
        if parameter:
            self.scope.state.append(f"self.{name} = nn.Parameter({text})")
            self.scope.module.register_parameter(name, nn.Parameter(value))
        else:
            self.scope.state.append(f'self.register_buffer("{name}", {text})')
            self.scope.module.register_buffer(name, value)
        return f"self.{name}"

    def line(self, text: str) -> None:
        """A statement without a result."""
        self.lines.append(text)

    def local(self, text: str) -> str:
        """A variable that later steps do not see."""
        name = f"t{self.step.uid}_{len(self.lines)}"
        self.lines.append(f"{name} = {text}")
        return name

    def result(self, text: str) -> str:
        """A variable with the value of an expression."""
        name = f"v{self.step.uid}" + (f"_{len(self.results)}" if self.results else "")
        self.lines.append(f"{name} = {text}")
        self.results.append(name)
        return name

    def unpacked(self, text: str, count: int) -> list[str]:
        """Variables with the parts of a tuple."""
        names = [f"v{self.step.uid}_{index}" for index in range(count)]
        if count < 1 or count > 6:
            raise DoesNotFit("too many parts")
        self.lines.append(f"{', '.join(names)}{',' if count == 1 else ''} = {text}")
        self.results += names
        return names

    def execute(self) -> dict[str, Tensor]:
        """Run the statements; returns the results.

        Raises:
            DoesNotFit: a variable is not one that later steps can use.
        """
        names = self.scope.names
        before = {name: value.clone() for name, value in self._held()}
        exec("\n".join(self.lines), names)
        for name, value in self._held():
            if not torch.equal(value, before[name]):
                raise DoesNotFit("the input or a parameter was written to")
        found = {name: names[name] for name in self.results}
        for value in [*found.values(), *(names[name] for name in self.scope.variables)]:
            _check(value)
        return found

    def _held(self) -> list[tuple[str, Tensor]]:
        module = self.scope.module
        return [("x", self.scope.x), *module.named_parameters(), *module.named_buffers()]


Emit = Callable[[Cursor], None]


def _check(value: object) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.float64:
        raise DoesNotFit("no tensor of float64")
    if value.ndim > AXES or not 0 < value.numel() <= LARGEST:
        raise DoesNotFit("too large, or empty")
    largest = float(value.abs().max())
    if not largest <= LOUDEST or largest < 1e-3:
        raise DoesNotFit("too loud, or too quiet")


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def build(program: Program, grammar: dict[str, Emit], forms: dict[str, Form]) -> Built:
    """The statements of a program.

    Raises:
        DoesNotFit: a step of it cannot be executed.
    """
    scope = Scope(program.seed, program.sizes, program.shape, program.vocabulary)
    steps = tuple(scope.add(step, grammar[step.op], None) for step in program.steps)
    missing = [name for name in program.returned if name not in scope.variables]
    if missing:
        raise DoesNotFit("a result is gone")
    ending = forms[program.form](program.returned)
    return Built(replace(program, steps=steps), tuple(scope.state), (*scope.lines, *ending))


Form = Callable[[Sequence[str]], list[str]]
