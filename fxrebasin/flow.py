"""The data flow of a model, module by module: what the picture of a symmetry is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Part:
    """A module that ran, or operators between modules.

    Attributes:
        path: of the module that called the operators, "" for the model itself.
        own: the module ran others as well; this is what it does between them.
        states: parameters and buffers that are read.
        operators: short names of the operators that read them or join tensors, else of all.
        unknown: one of the operators has no rule.
    """

    path: str
    own: bool
    states: tuple[str, ...]
    operators: tuple[str, ...]
    unknown: bool


class StepKind(Enum):
    """What a node of the data flow is; the values are what pictures say."""

    INPUT = "input"
    OUTPUT = "output"
    STEP = "step"
    MERGED = "merged"
    """A step that became a part of another one."""


@dataclass(frozen=True)
class Step:
    """A node of the data flow.

    Attributes:
        kind: whether it is an input, an output or what the model does in between.
        parts: what it does, in order.
        inner: outermost classes of its state that are neither in its inputs nor its output.
        classes: outermost classes of the tensor that it hands on.
    """

    kind: StepKind
    parts: tuple[Part, ...]
    inner: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """A tensor that one step hands to a later one, both by index, with its outermost classes."""

    source: int
    target: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Flow:
    """Steps that hold state or join tensors, in order of time, and the tensors between them."""

    steps: tuple[Step, ...]
    streams: tuple[Stream, ...]
