"""The MLP of the original weight decay experiment."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Five linear layers; ReLU, then LayerNorm, after all but the last, which ends in a sigmoid.

    Args:
        inputs: numbers in one item.
        width: units in a hidden layer; the original has 784.
        classes: outputs.
        layers: linear layers.

    Example:
        >>> import torch
        >>> MLP(inputs=4, width=8, classes=3)(torch.zeros(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(self, inputs: int, width: int, classes: int, layers: int = 5) -> None:
        super().__init__()
        sizes = (inputs, *([width] * (layers - 1)))
        hidden = [
            part
            for before, after in pairwise(sizes)
            for part in (nn.Linear(before, after), nn.ReLU(), nn.LayerNorm(after))
        ]
        self.sequential = nn.Sequential(
            nn.Flatten(), *hidden, nn.Linear(width, classes), nn.Sigmoid()
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores `[n, classes]`, each from 0 to 1, of inputs `[n, ...]`."""
        scores: Tensor = self.sequential(inputs)
        return scores
