"""The network of hlb-CIFAR10 (tysam-code, Apache-2.0), written anew, with any kernel size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TEMPERATURE = 1 / 16
_EPSILON = 1e-2
_WIDTHS = (1, 4, 8)  # of the three groups; 64, 256 and 512 in the original


class SameConv2d(nn.Conv2d):
    """A convolution that keeps height and width, without the taps that see only padding.

    A filter of 15 × 15 on features of 2 × 2 has 9 taps of 225 that can meet a feature. The result
    is that of `nn.Conv2d(..., padding="same", bias=False)`, at a fraction of the products.

    Args:
        before: channels of the input.
        after: channels of the output.
        kernel: side of the filters in pixels, odd or even.
    """

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__(before, after, kernel, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[n, after, h, w]` of features `[n, before, h, w]`."""
        (top, bottom), (left, right) = (self._reach(size) for size in x.shape[-2:])
        centre = (self.kernel_size[0] - 1) // 2
        rows = slice(centre - top, centre + bottom + 1)
        columns = slice(centre - left, centre + right + 1)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight[:, :, rows, columns])

    def _reach(self, size: int) -> tuple[int, int]:
        """Taps before and after the centre that can meet a feature."""
        kernel = self.kernel_size[0]
        return min((kernel - 1) // 2, size - 1), min(kernel // 2, size - 1)


def _plain_conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding="same", bias=False)


class ConvGroup(nn.Module):
    """Convolution, pooling and BatchNorm, then a residual convolution: `[n, c, h, w]` to half.

    Args:
        before: channels of the input.
        after: channels of the output.
        kernel: side of the filters in pixels.
        plain: use `nn.Conv2d` itself.
    """

    def __init__(self, before: int, after: int, kernel: int, plain: bool) -> None:
        super().__init__()
        convolution = _plain_conv if plain else SameConv2d
        self.conv1 = convolution(before, after, kernel)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = convolution(after, after, kernel)
        self.norm2 = nn.BatchNorm2d(after)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Features `[n, after, h / 2, w / 2]`."""
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        inner: Tensor = self.activation(self.norm2(self.conv2(x)))
        return x + inner


class SpeedyResNet(nn.Module):
    """A fixed whitening convolution, three groups, the maximum over positions, a linear layer.

    Args:
        channels: of the images.
        width: channels of the first group; the others have 4 and 8 times as many. The original
            has 64.
        kernel: side of the filters in pixels.
        classes: outputs.
        plain: use `nn.Conv2d` itself, for those who must know the class of a module.

    Example:
        >>> SpeedyResNet(channels=1, width=2).eval()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        kernel: int = 3,
        classes: int = 10,
        plain: bool = False,
    ) -> None:
        super().__init__()
        whitened = 2 * channels * 4
        self.whiten = (_plain_conv if plain else SameConv2d)(channels, whitened, 2)
        self.whiten.weight.requires_grad_(False)
        self.activation = nn.GELU()
        first, second, third = (width * factor for factor in _WIDTHS)
        self.group1 = ConvGroup(whitened, first, kernel, plain)
        self.group2 = ConvGroup(first, second, kernel, plain)
        self.group3 = ConvGroup(second, third, kernel, plain)
        self.head = nn.Linear(third, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]` of images `[n, channels, h, w]`, h and w at least 8."""
        x = self.activation(self.whiten(images))
        x = self.group3(self.group2(self.group1(x)))
        logits: Tensor = self.head(x.amax((2, 3)))
        return logits * _TEMPERATURE

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Set the first layer to the principal directions of 2 × 2 patches, both signs, scaled.

        Args:
            images: `[n, channels, h, w]`.
        """
        size = self.whiten.weight[0].numel()
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, size)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        filters = (vectors / (values + _EPSILON).sqrt()).T.reshape(
            size, *self.whiten.weight[0].shape
        )
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
