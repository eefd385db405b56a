"""Cross-moments of the units of all copies of a class, such as the dimensions of heads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """How much all units of all copies of a class agree in two models.

    Attributes:
        matrix: float64 of shape (copies times units, copies times units), the reference's first.
        size: how many units a copy has.
    """

    matrix: Tensor
    size: int

    def of_copies(self, among: int) -> Tensor:
        """Of each copy with all copies in the same outer one.

        Args:
            among: how many copies are in each outer one.

        Returns:
            Of shape (outer copies, among, among, units, units).
        """
        outer = len(self.matrix) // (among * self.size)
        parts = self.matrix.reshape(outer, among, self.size, outer, among, self.size)
        return parts.diagonal(dim1=0, dim2=3).permute(4, 0, 2, 1, 3)
