"""Matching problems inside another one: many of the same shape at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fxrebasin.indexing import Arrays
from fxrebasin.solvers.assignment import collected
from fxrebasin.solvers.blocks import Block, agreement
from fxrebasin.solvers.scaling import Gains

Values: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InnerProblems:
    """A batch of matching problems of one shape.

    Args:
        count: number of problems.
        names: classes to solve for.
        linear: gains that no other class changes, of shape `(count, *copies, n, n)` by class name.
        blocks: weights that hold several classes.
    """

    count: int
    names: tuple[str, ...]
    linear: Mapping[str, Gains] = field(default_factory=dict)
    blocks: Sequence[Block] = ()

    def roots(self) -> list[str]:
        """Classes that are within no class that is solved for as well."""
        inner = {
            slot.class_name
            for block in self.blocks
            for slot in block.slots
            if any(block.slots[w].class_name in self.names for w in slot.within)
        }
        return [name for name in self.names if name not in inner]

    def values(self, arrays: Arrays) -> Values:
        """What permutations collect, float64 of shape (count,).

        Args:
            arrays: of all classes, `(count, *copies, n)`.
        """
        total = np.zeros(self.count)
        for name, gains in self.linear.items():
            total += collected(gains, arrays[name]).reshape(self.count, -1).sum(axis=1)
        for block in self.blocks:
            total += agreement(block, arrays).cpu().numpy()
        return total
