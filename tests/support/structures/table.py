"""The table of structures, and the shorthand that fills it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Structure:
    """A module, inputs for it, and how many permutations leave it unchanged.

    Attributes:
        name: for the test's report.
        build: makes the module.
        inputs: makes its positional inputs.
        order: log10 of the number of elements of its group.
        state_buffers: buffers that the analysis is told to treat as state.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    order: float
    state_buffers: tuple[str, ...] = ()


STRUCTURES: dict[str, Structure] = {}


def structure(
    order: float, *inputs: Callable[[], Tensor], name: str = "", **options: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add what makes a module to the table, under its own name unless another is given."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        key = name or build.__name__
        if key in STRUCTURES:
            raise ValueError(f"there are two structures named {key}")
        STRUCTURES[key] = Structure(
            key, build, lambda: tuple(make() for make in inputs), order, **options
        )
        return build

    return register


def f(*sizes: int) -> float:
    """The decimal logarithm of the product of the sizes' factorials."""
    return sum(math.log10(math.factorial(size)) for size in sizes)


def floats(*shape: int) -> Callable[[], Tensor]:
    """Standard normal values."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ids(count: int, *shape: int) -> Callable[[], Tensor]:
    """Token ids below `count`."""
    return lambda: torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


IMAGE = floats(2, 3, 6, 6)
VECTOR = floats(4, 3)
SEQUENCE = floats(2, 5, 3)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Around(nn.Module):
    """An embedding of vectors in a stream, something on the stream, and a head."""

    def __init__(self, width: int, *inner: nn.Module) -> None:
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.inner = nn.ModuleList(inner)
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Inner modules one after the other, each added to the stream."""
        x = self.enter(x)
        for module in self.inner:
            x = x + module(x)
        return self.leave(x)


def shaped(*shape: int) -> nn.Parameter:
    """A parameter with normal values."""
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
