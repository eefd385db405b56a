"""What an analysis of one class says of operators, whatever these do to axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxrebasin.errors import FxRebasinError
from fxrebasin.passes.kinds.marks import Mark, Value
from fxrebasin.passes.rules.scaling import Scaling


class LimitError(FxRebasinError):
    """An operator does not commute with the group that is tried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Analysis:
    """How values answer to an element of a group, operator by operator.

    Each method returns the form of the result, or raises a `LimitError` where the group is too
    large for the operator.
    """

    apart = False
    """Whether parts of a tensor answer on their own, also where they have the same units."""

    size: int
    at: object = ""
    node: fx.Node | None = None

    def joined(self, one: Mark, two: Mark) -> Any:
        """Two tensors with the same units are added, or one of them is taken."""

    def multiplied(self, one: Mark, two: Mark) -> Any:
        """Two tensors with the same units are multiplied element by element."""

    def contracted(self, one: Mark, two: Mark) -> None:
        """Two tensors with the same units are multiplied, and summed over them."""

    def summed(self, mark: Mark) -> None:
        """A tensor is summed over all units of each copy."""

    def beside(self, mark: Mark) -> Any:
        """A tensor is added to one that does not depend on the units."""

    def offset(self, mark: Mark) -> bool:
        """Whether a part of the state may be used with a number added to all of it."""
        return False

    def centred(self, mark: Mark) -> Any:
        """The mean over some axes is taken off a tensor; other units of each copy have one too."""
        return self.beside(mark)

    def scaled(self, mark: Mark, scaling: Scaling) -> Any:
        """An element-wise operator."""

    def largest(self, mark: Mark) -> Any:
        """The largest of several elements of one unit."""

    def carried(self, mark: Mark) -> Any:
        """A linear operator that treats all units alike and does nothing else to them."""

    def stays(self, mark: Mark) -> Any:
        """As `kept`, for an operator whose result has the units where they were."""

    def kept(self, mark: Mark) -> None:
        """The tensor is used as it is: units may be permuted, and nothing else."""

    def uneven(self, mark: Mark, other: Any, name: str) -> Any:
        """A tensor meets one that differs from unit to unit, and that nothing moves.

        Args:
            mark: units of the first.
            other: the node of the second.
            name: of the operator.
        """
        self.kept(mark)

    def collected(self, one: Value, two: Value, name: str) -> Value | None:
        """What is known of the result of an operator on two tensors, if all is looked at at once.

        Args:
            one: what is known of the first.
            two: of the second.
            name: of the operator.
        """

    def contracted_whole(self, one: Value, two: Value, summed: Sequence[int]) -> bool:
        """Whether a product was taken care of as a whole.

        Args:
            one: what is known of the first tensor, with an axis for each index of the product.
            two: of the second.
            summed: axes that are summed over.
        """
        return False
