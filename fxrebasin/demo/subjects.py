"""What the demo is about: which networks are trained, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fxrebasin.demo.networks import DigitsMLP, DigitsResNet
from fxrebasin.demo.training import Recipe


@dataclass(frozen=True)
class Subject:
    """A kind of network of which the demo trains two.

    `batch_norm` says that statistics have to be recomputed for a network between two others.
    """

    title: str
    file_name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    batch_norm: bool


# Large steps and a strong weight decay: both bring networks from different seeds closer to being
# permutations of each other, on which the height of the barrier after rebasing depends.
SUBJECTS = (
    Subject(
        title="MLP with LayerNorm",
        file_name="mlp.onnx",
        build=DigitsMLP,
        recipe=Recipe(epochs=10, learning_rate=3e-3, weight_decay=3.0),
        batch_norm=False,
    ),
    Subject(
        title="ResNet with BatchNorm",
        file_name="resnet.onnx",
        build=DigitsResNet,
        recipe=Recipe(epochs=8, learning_rate=1e-2, weight_decay=2.0),
        batch_norm=True,
    ),
)
