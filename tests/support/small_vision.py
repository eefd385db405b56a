"""Torchvision's classifiers, a few layers deep and a few channels wide, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fxrebasin.models.torchvision_shim import ensure_torchvision

CLASSES = 7


def _resnet() -> nn.Module:
    from torchvision.models import resnet

    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def _resnext() -> nn.Module:
    from torchvision.models import resnet

    return resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4, num_classes=CLASSES
    )


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(6, (2, 2), 8, bn_size=2, num_classes=CLASSES)


def _mobilenet() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    config = partial(InvertedResidualConfig, dilation=1, width_mult=0.5)
    blocks = [
        config(16, 3, 16, 16, True, "RE", 2),
        config(16, 3, 40, 24, False, "HS", 2),
        config(24, 5, 48, 24, True, "HS", 1),
    ]
    return MobileNetV3(blocks, 40, num_classes=CLASSES)


def _efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    blocks = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 5, 2, 8, 16, 2)]
    return EfficientNet(blocks, 0.2, num_classes=CLASSES, last_channel=24)


def _shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 16, 32, 48, 40], num_classes=CLASSES)


def _mnasnet() -> nn.Module:
    from torchvision.models import MNASNet

    return MNASNet(0.2, num_classes=CLASSES)


def _regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    params = BlockParams([1, 2], [16, 24], [8, 8], [1.0, 1.0], [2, 2], 0.25)
    return RegNet(params, num_classes=CLASSES, stem_width=8)


def _swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    second = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return swin.SwinTransformer(
        *([4, 4], 12, [2, 2], [2, 4], [4, 4]),
        num_classes=CLASSES,
        **(second if version == 2 else {}),
    )


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(12, 20, 1), CNBlockConfig(20, None, 2)], num_classes=CLASSES)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 3, 24, 40, num_classes=CLASSES)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit((32, 32), 12, 4, [12, 16], [1, 1], 4, 0.0, num_classes=CLASSES)


def _named(name: str) -> nn.Module:
    from torchvision import models

    found: nn.Module = models.get_model(name, num_classes=CLASSES)
    return found


def _googlenet() -> nn.Module:
    from torchvision.models import GoogLeNet

    return GoogLeNet(CLASSES, aux_logits=False, init_weights=False)


SMALL_VISION: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet": (_resnet, 32),
    "resnext": (_resnext, 32),
    "densenet": (_densenet, 32),
    "mobilenet_v3": (_mobilenet, 32),
    "efficientnet_v2": (_efficientnet, 32),
    "shufflenet_v2": (_shufflenet, 32),
    "squeezenet": (partial(_named, "squeezenet1_1"), 32),
    "mnasnet": (_mnasnet, 32),
    "googlenet": (_googlenet, 32),
    "regnet_y": (_regnet, 32),
    "swin": (partial(_swin, 1), 32),
    "swin_v2": (partial(_swin, 2), 32),
    "convnext": (_convnext, 32),
    "vit": (_vit, 32),
    "maxvit": (_maxvit, 32),
}
"""How each is built, and the height and width of its images."""


def small_vision(name: str) -> tuple[nn.Module, Tensor]:
    """A model in eval mode, and two images."""
    ensure_torchvision()
    build, size = SMALL_VISION[name]
    torch.manual_seed(0)
    return build().eval(), torch.randn(2, 3, size, size)
