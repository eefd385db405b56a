"""Small classifiers of digits: an MLP with any activation, and the demo's ResNet."""

from __future__ import annotations

from torch import nn

from fxrebasin.demo.networks import DigitsResNet

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def plain_mlp(activation: str, inputs: int = 64, width: int = 64, classes: int = 10) -> nn.Module:
    """Two hidden layers without norms.

    Args:
        activation: "relu" or "tanh".
        inputs: numbers in one item.
        width: units in a hidden layer.
        classes: outputs.
    """
    function = _ACTIVATIONS[activation]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        function(),
        nn.Linear(width, width),
        function(),
        nn.Linear(width, classes),
    )


def digits_resnet(width: int = 16) -> nn.Module:
    """Two residual blocks with BatchNorm and ReLU.

    Args:
        width: channels of the first; the second has twice as many.
    """
    return DigitsResNet(width)
