"""Classifiers of torchvision, narrower and less deep than it offers them, for small images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fxrebasin.models.torchvision_shim import ensure_torchvision

# Each takes a width whose meaning its docstring tells.


def _vit(width: int, classes: int, side: int) -> nn.Module:
    """vit_b_16: 4 of 12 blocks, 4 of 12 heads, patches of 4 × 4."""
    ensure_torchvision()
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=side,
        patch_size=4,
        num_layers=4,
        num_heads=4,
        hidden_dim=4 * width,
        mlp_dim=16 * width,
        num_classes=classes,
    )


def _wide_resnet(width: int, classes: int, side: int) -> nn.Module:
    """wide_resnet50_2: 1 block per group for 3, 4, 6 and 3, and `width` for its 64 channels."""
    ensure_torchvision()
    from torchvision.models.resnet import Bottleneck, ResNet

    class Narrow(ResNet):
        """A ResNet whose groups have `width`, 2, 4 and 8 times `width` channels, times four."""

        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            layer: nn.Sequential = super()._make_layer(block, planes * width // 64, *args, **kwargs)
            return layer

    model = Narrow(Bottleneck, [1, 1, 1, 1], width_per_group=128)
    model.fc = nn.Linear(8 * width * Bottleneck.expansion, classes)
    return model


def _efficientnet(width: int, classes: int, side: int) -> nn.Module:
    """efficientnet_b1: 1 block per stage, 7 of 23, widths so that the stem has `width` for 32."""
    ensure_torchvision()
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    table = ((1, 3, 1, 32, 16), (6, 3, 2, 16, 24), (6, 5, 2, 24, 40), (6, 3, 2, 40, 80))
    table += ((6, 5, 1, 80, 112), (6, 5, 2, 112, 192), (6, 3, 1, 192, 320))
    blocks = [MBConvConfig(*row, 1, width_mult=width / 32, depth_mult=1.0) for row in table]
    return EfficientNet(blocks, dropout=0.0, stochastic_depth_prob=0.0, num_classes=classes)


def _mobilenet(width: int, classes: int, side: int) -> nn.Module:
    """mobilenet_v3_large: all blocks, widths so that the stem has `width` for 16."""
    ensure_torchvision()
    from torchvision.models import mobilenet_v3_large

    return mobilenet_v3_large(width_mult=width / 16, num_classes=classes, dropout=0.0)


REDUCED: Mapping[str, Callable[..., nn.Module]] = {
    "vit_b_16": _vit,
    "wide_resnet50_2": _wide_resnet,
    "efficientnet_b1": _efficientnet,
    "mobilenet_v3_large": _mobilenet,
}
"""By torchvision's name, from `width`, `classes` and `side` (of the images in pixels)."""
