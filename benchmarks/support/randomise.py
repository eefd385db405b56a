"""Weights and statistics without which a wrong permutation could go unnoticed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def randomise(model: nn.Module, images: Tensor, seed: int) -> None:
    """Give `model` state in which all units differ, in place, whatever it was initialised with.

    Freshly built models hide errors: biases are zero, affine weights and running statistics are
    constant, layer scales are so small that their blocks do nothing. Parameters are redrawn with
    their own standard deviation, constant ones around 1 (around 0 if they are zero). BatchNorm
    statistics are taken from a forward pass in training mode on `images`, so that activations stay
    in range in deep models, and then scaled and shifted per unit.

    Args:
        model: its parameters, and the running statistics of BatchNorm, are overwritten.
        images: `[n, c, h, w]`, n at least 2.
        seed: of the draw; the global generator is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        _redraw(parameter, generator)
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if layers:
        _measure_statistics(model, layers, images)
    for layer in layers:
        if layer.running_mean is not None and layer.running_var is not None:
            spread = layer.running_var.sqrt()
            layer.running_mean += 0.2 * spread * _normal(layer.running_mean, generator)
            layer.running_var *= _around_one(layer.running_var, generator)


def _redraw(parameter: Tensor, generator: torch.Generator) -> None:
    low, high = parameter.aminmax()
    if low < high:
        spread = parameter.std()
        parameter.copy_(parameter.mean() + spread * _normal(parameter, generator))
    elif low == 0:
        parameter.copy_(0.1 * _normal(parameter, generator))
    else:
        parameter.copy_(_around_one(parameter, generator))


def _measure_statistics(model: nn.Module, layers: list[_BatchNorm], images: Tensor) -> None:
    """Only BatchNorm is in training mode: dropout and stochastic depth would change the scale."""
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    model(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _around_one(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=generator)
