"""The networks of the matching benchmark; needs torch only, so that a peer can build them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from fxrebasin.models.torchvision_shim import ensure_torchvision

_VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def mlp(width: int = 512, hidden: int = 4) -> nn.Module:
    """Four hidden layers of 512 for 28 × 28 images."""
    sizes = (784, *([width] * hidden))
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def vgg16() -> nn.Module:
    """VGG16 for 32 × 32 images, with BatchNorm and two hidden layers of 512."""
    layers: list[nn.Module] = []
    before = 3
    for width in _VGG:
        if width:
            convolution = nn.Conv2d(before, width, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class WideBlock(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm around a skip, projected where the width changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip: nn.Module = nn.Identity()
        if before != width:
            projection = nn.Conv2d(before, width, 1, stride, bias=False)
            self.skip = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features of features."""
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.skip(x) + inner)


def resnet22(widen: int = 2) -> nn.Module:
    """ResNet-22 for 32 × 32 images: three groups of three blocks, `widen` times as wide."""
    blocks: list[nn.Module] = []
    before = 16
    for group, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for k in range(3):
            blocks.append(WideBlock(before, width, 2 if group and not k else 1))
            before = width
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)]
    return nn.Sequential(*stem, *blocks, *head)


OWN: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (1, 28, 28)),
    "vgg16_cifar": (vgg16, (3, 32, 32)),
    "resnet22x2": (resnet22, (3, 32, 32)),
}
"""Networks that are not torchvision's, with the shape of an image."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode, with two images to run it on.

    Args:
        name: a key of `OWN`, or a classifier of torchvision.

    Raises:
        ValueError: torchvision has no such classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in OWN:
            make, shape = OWN[name]
            model = make()
        else:
            ensure_torchvision()
            from torchvision import models

            model, shape = models.get_model(name, weights=None), (3, 224, 224)
        return model.eval(), torch.randn(2, *shape)


def draw(model: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """A state of the network with everything random, statistics included.

    Args:
        model: is overwritten.
        images: to run it on.
        seed: of the state.
    """
    # Not above: other tools are run with this file, in environments without our passes.
    from benchmarks.support.randomise import randomise

    randomise(model, (images,), seed)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
