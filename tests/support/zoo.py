"""torchvision's classifiers, built without drawing their weights, and small images for them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from benchmarks.support.meta import parameters_on_meta
from fxrebasin.models.torchvision_shim import ensure_torchvision


def classifiers() -> list[str]:
    """The names of all of them, 80 in torchvision 0.28."""
    ensure_torchvision()
    from torchvision import models

    return sorted(models.list_models(module=models))


def build(name: str) -> nn.Module:
    """A classifier in eval mode, whose parameters are on the meta device; buffers have values."""
    from torchvision import models

    with warnings.catch_warnings(), parameters_on_meta():
        # Two of them announce a change of their initialisation, which does not take place here
        warnings.simplefilter("ignore", FutureWarning)
        return models.get_model(name).eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Give a model that `build` made random parameters and running statistics, none of them plain.

    Matrices and kernels get the scale of their fan-in, biases are normal, and vectors (weights of
    normalisations, layer scales, tokens) lie around 1.
    """
    generator = torch.Generator().manual_seed(seed)
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            drawn = _draw(name, parameter.shape, generator).to(dtype)
            setattr(owner, name, nn.Parameter(drawn, requires_grad=False))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.to(dtype)


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if "bias" in name and len(shape) == 1:
        return 0.2 * torch.randn(shape, generator=generator)
    if shape.numel() == max(shape, default=1):
        return 0.5 + torch.rand(shape, generator=generator)
    fan_in = shape.numel() // shape[0]
    return fan_in**-0.5 * torch.randn(shape, generator=generator)


def image_size(name: str) -> int:
    """The smallest multiple of 32 at which the model runs and reads all of its parameters."""
    if name.startswith(("vit_", "maxvit")):
        return 224
    return 96 if name == "inception_v3" else 64
