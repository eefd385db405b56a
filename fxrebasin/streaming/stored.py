"""What is known of a tensor in a file before it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stored:
    """Shape and dtype of a tensor in a file.

    Args:
        shape: of the tensor.
        dtype: in which it is stored.

    Example:
        >>> Stored((2, 3), torch.bfloat16).bytes
        12
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """That it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def bytes_of_row(self) -> int:
        """That one position along the first axis takes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def on_meta(self) -> torch.Tensor:
        """A tensor of this form without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")
