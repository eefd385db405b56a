"""A generated module as data: steps that can be dropped, and numbers that can be lowered.

A step does not hold the text of its statements but the choices that lead to it: the operator, the
variables that it reads and the numbers that were drawn. Statements and the shapes of parameters
follow from these and from the shapes of the operands, so that a program in which something was
changed is still a program.
"""

from __future__ import annotations

import collections
import dataclasses
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREAMBLE = """\
import collections
import dataclasses
import types

import torch
import torch.nn.functional as F
from torch import nn

torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed({seed})


def randn(*shape):
    return torch.randn(shape, generator=generator)


def rand(*shape):
    return 0.5 + torch.rand(shape, generator=generator)


def integers(below, *shape):
    if shape[-1] > below:
        return torch.randint(below, shape, generator=generator)
    return torch.rand((*shape[:-1], below), generator=generator).argsort(-1)[..., : shape[-1]]


"""

KINDS = """\
Pair = collections.namedtuple("Pair", "first rest")


@dataclasses.dataclass
class Record:
    first: object
    rest: object = None


class Slotted:
    __slots__ = ("first", "rest")

    def __init__(self, first, rest):
        self.first, self.rest = first, rest

"""
"""Classes of objects that programs return."""


@dataclass(frozen=True)
class Step:
    """One or several statements.

    Attributes:
        uid: what its results are called after.
        op: the key of the grammar.
        operands: variables it reads, in the order in which it asks for them.
        draws: numbers, in the order in which it asks for them.
    """

    uid: int
    op: str
    operands: tuple[str, ...] = ()
    draws: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """Choices that a module follows from.

    Attributes:
        seed: of the numbers in parameters, buffers and inputs.
        sizes: axes of parameters get one of these.
        shape: of the input; the first axis is the batch.
        steps: in the order of execution.
        returned: variables that `forward` returns.
        form: the key of how they are returned.
        vocabulary: if not 0, the input holds integers below it, which are looked up in a table.
    """

    seed: int
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    returned: tuple[str, ...]
    form: str = "tensor"
    vocabulary: int = 0

    @property
    def input(self) -> str:
        """The statement's right-hand side that draws the input."""
        if self.vocabulary:
            return f"integers({', '.join(map(str, (self.vocabulary, *self.shape[:-1])))})"
        return f"randn({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Built:
    """The statements that a program stands for.

    Attributes:
        program: where they come from.
        state: statements that make parameters and buffers.
        lines: the statements of `forward`.
    """

    program: Program
    state: tuple[str, ...]
    lines: tuple[str, ...]

    def source(self) -> str:
        """The module and an input as a file that anyone can run."""
        preamble = PREAMBLE.format(seed=self.program.seed) + KINDS
        lines = [preamble, f"x = {self.program.input}", "", "", *self.class_lines()]
        return "\n".join([*lines, "", "", "net = Net().eval()"])

    def class_lines(self) -> list[str]:
        """The lines of the class."""
        return [
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in self.state),
            "",
            f"    def forward(self, {'ids' if self.program.vocabulary else 'x'}):",
            *(f"        {line}" for line in self.lines),
        ]

    def make(self) -> tuple[nn.Module, Tensor]:
        """The module in eval mode, and an input for it."""
        names = namespace(self.program.seed)
        x = eval(self.program.input, names)
        exec("\n".join(self.class_lines()), names)
        return names["Net"]().eval(), x


def namespace(seed: int) -> dict[str, Any]:
    """The names that statements use."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def rand(*shape: int) -> Tensor:
        return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)

    return {**_kinds(), "randn": randn, "rand": rand, "integers": partial(integers, generator)}


def integers(generator: torch.Generator, below: int, *shape: int) -> Tensor:
    """Numbers that differ along the last axis, if there are enough of them.

    Rows that are equal because their inputs are would be told apart by rounding alone where the
    index of the largest is taken, and rounding is another one after any permutation.
    """
    if shape[-1] > below:
        return torch.randint(below, shape, generator=generator)
    return torch.rand((*shape[:-1], below), generator=generator).argsort(-1)[..., : shape[-1]]


@cache
def _kinds() -> dict[str, Any]:
    """What programs use of libraries, and the classes of objects that they return."""
    names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "types": types}
    names |= {"collections": collections, "dataclasses": dataclasses}
    exec(KINDS, names)
    return names


@contextmanager
def float64() -> Iterator[None]:
    """Tensors that programs make are float64; no gradients, and no warnings of what is odd."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


Run = Callable[..., Any]
