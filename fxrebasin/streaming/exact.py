"""Sums of matrices that come out the same in whatever order, and on however many machines.

Each term is rounded once to whole multiples of a power of two, and these are added as integers,
which loses nothing. The unit is found from a first look at the terms; whether it was a good one is
known when all of them were seen, and if not, they are added up again with one that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fxrebasin.errors import InputError
from fxrebasin.ranks import Ranks

_TOP = 62
_LOOK = 34
"""Bits of the largest number of a first look; so many are left for what comes after it."""
_AGAIN = 60
_FINE = 24
"""Bits that the largest term has at least, as many as in single precision."""
_LOWEST = -300
_AT_ONCE = 2**18


class ExactSum:
    """A sum of matrices.

    Args:
        size: of rows and columns.
        dtype: of the terms.
        exponent: of the unit, a power of two.

    Attributes:
        numbers: int64 of shape (size, size), in units; of what this process added.
        bound: no number is larger, in units, however the terms are added.
        largest: magnitude in a term.
        terms: how many there are.

    Example:
        >>> total = ExactSum(1, torch.float32, exponent=-40)
        >>> for number in (0.1, 1.0, -1.0):
        ...     total.add(torch.tensor([[number]]))
        >>> float(total.matrix()) == float(torch.tensor(0.1))
        True
    """

    def __init__(self, size: int, dtype: torch.dtype, exponent: int) -> None:
        self.numbers = torch.zeros(size, size, dtype=torch.int64)
        self.dtype, self.exponent = dtype, exponent
        self.bound, self.largest, self.terms = 0, 0.0, 0

    def add(self, term: torch.Tensor, sign: int = 1) -> None:
        """Add a term, or take it away again.

        Args:
            term: of shape (size, size).
            sign: 1 or -1.

        Raises:
            InputError: its numbers are too large for its dtype.
        """
        largest = max((abs(float(end)) for end in term.aminmax()), default=0.0)
        if not math.isfinite(largest):
            raise InputError(
                "products of weights are too large for the precision that they are computed in; "
                "scale both checkpoints down"
            )
        units = math.ldexp(largest, -self.exponent)
        self.bound += math.ceil(units)
        self.largest, self.terms = max(self.largest, largest), self.terms + 1
        if units >= 2**_TOP:
            return  # the bound tells that it has to be done again
        step = max(1, _AT_ONCE // max(1, term.shape[1]))
        for total, part in zip(self.numbers.split(step), term.split(step), strict=True):
            units_of_part = part.double() * 2.0**-self.exponent
            total.add_(units_of_part.round_().long(), alpha=sign)

    def sum_up(self, ranks: Ranks, fill: Callable[[ExactSum], None]) -> torch.Tensor:
        """The sum of the terms of all processes; that of the first holds it from then on.

        Args:
            ranks: the processes.
            fill: adds all terms of this process to an empty sum.

        Returns:
            Of shape (size, size) and the dtype of the terms, the same in all processes.
        """
        self._join(ranks)
        if not self._is_right:
            whole = max(math.frexp(self.largest * self.terms)[1] - _AGAIN, _LOWEST)
            self.clear()
            self.exponent = whole
            fill(self)
            self._join(ranks)
        found = self.matrix()
        if ranks.number:
            self.clear()
        return found

    def clear(self) -> None:
        """Take all terms away."""
        self.numbers.zero_()
        self.bound, self.largest, self.terms = 0, 0.0, 0

    def matrix(self) -> torch.Tensor:
        """The sum as it is, in the dtype of the terms."""
        found = torch.empty(self.numbers.shape, dtype=self.dtype)
        step = max(1, _AT_ONCE // max(1, found.shape[1]))
        for rows, part in zip(found.split(step), self.numbers.split(step), strict=True):
            rows.copy_(part.double() * 2.0**self.exponent)
        return found

    def _join(self, ranks: Ranks) -> None:
        ranks.add_up(self.numbers)
        every = ranks.every((self.bound, self.largest, self.terms))
        self.bound = sum(bound for bound, _, _ in every)
        self.largest = max(largest for _, largest, _ in every)
        self.terms = sum(terms for _, _, terms in every)

    @property
    def _is_right(self) -> bool:
        """Whether nothing is too large for the unit, and the unit is not too large."""
        fine = math.ldexp(self.largest, -self.exponent) >= 2**_FINE
        return self.bound < 2**_TOP and (fine or not self.largest)


def exponent_for(largest: float) -> int:
    """The exponent of a unit that is right if later terms are not very much larger.

    Args:
        largest: magnitude in a first term; 0 if none is known.

    Example:
        >>> exponent_for(1.0)
        -33
    """
    return max(math.frexp(largest or 1.0)[1] - _LOOK, _LOWEST)
