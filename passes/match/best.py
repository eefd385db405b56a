"""The best permutations so far, where lower is better."""

from __future__ import annotations

import math

from fxrebasin.indexing import Arrays
from fxrebasin.layout import IntArray


class Best:
    """The permutations with the lowest loss.

    Args:
        arrays: int64 by class name, the permutations until a loss is known.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays: dict[str, IntArray] = dict(arrays)
        self.loss = math.inf

    def is_new(self, arrays: Arrays) -> bool:
        """Whether these differ from the best.

        Args:
            arrays: int64 by class name.
        """
        return any((array != self.arrays[name]).any() for name, array in arrays.items())

    def offer(self, arrays: Arrays, loss: float) -> None:
        """Keep permutations if their loss is the lowest.

        Args:
            arrays: int64 by class name.
            loss: of these.
        """
        if loss < self.loss:
            self.arrays, self.loss = dict(arrays), loss
