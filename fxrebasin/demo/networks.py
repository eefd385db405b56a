"""The demo's two networks for 8 × 8 images of ten classes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10
PIXELS = 64


class DigitsMLP(nn.Module):
    """Three hidden layers, each linear, LayerNorm, ReLU: `[n, 1, 8, 8]` to logits `[n, 10]`.

    Example:
        >>> DigitsMLP(width=16)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        sizes = (PIXELS, width, width, width)
        hidden = (
            nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU())
            for before, after in pairwise(sizes)
        )
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.head(self.hidden(images.flatten(1)))
        return logits


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm around a skip: `[n, c, h, w]` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features of features."""
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(x + inner)


class DigitsResNet(nn.Module):
    """Strided stem, two residual blocks of one and two widths: `[n, 1, 8, 8]` to logits `[n, 10]`.

    Example:
        >>> DigitsResNet(width=4).eval()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = _conv_norm_relu(1, width, stride=2)
        self.block1 = ResidualBlock(width)
        self.widen = _conv_norm_relu(width, 2 * width, stride=1)
        self.block2 = ResidualBlock(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        features = self.block2(self.widen(self.block1(self.stem(images))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _conv_norm_relu(before: int, after: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())
