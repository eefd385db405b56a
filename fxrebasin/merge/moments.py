"""Mean and variance of units, pooled over batches in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxrebasin.solvers.activations import sum_device


@dataclass(frozen=True)
class Moments:
    """Of some values per unit.

    Args:
        count: number of values.
        mean: float64 of shape (units,).
        squares: sums of squared distances from the mean, float64 of shape (units,).
    """

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, tensor: torch.Tensor, axis: int) -> Moments:
        """The moments of a tensor over all of its axes but one.

        Args:
            tensor: floating, of any shape.
            axis: of the units.
        """
        values = tensor.detach().movedim(axis, -1).reshape(-1, tensor.shape[axis])
        values = values.to(sum_device(values), torch.float64)
        if not len(values):
            nothing = values.new_zeros(values.shape[1])
            return cls(0, nothing, nothing)
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        return cls(len(values), mean, variance * len(values))

    def pooled(self, other: Moments) -> Moments:
        """The moments of both sets of values taken together (Chan, Golub and LeVeque 1979).

        Args:
            other: of the same units.
        """
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = step.square() * (self.count * other.count / count)
        return Moments(count, mean, self.squares + other.squares + between)

    def variance(self, *, unbiased: bool = False) -> torch.Tensor:
        """Mean squared distance from the mean, float64 of shape (units,).

        Args:
            unbiased: divide by one less than the count, as BatchNorm does for what it keeps.
        """
        return self.squares / (self.count - 1 if unbiased else self.count)

    def deviation(self, resolution: float) -> torch.Tensor:
        """Standard deviations; 0 for units that are constant up to rounding.

        Args:
            resolution: relative distance of neighbouring numbers in the dtype of the values.
        """
        found = self.variance().sqrt()
        return torch.where(found > 4 * resolution * self.mean.abs(), found, 0.0)
