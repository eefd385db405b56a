"""The models of the equivalence benchmark by name, with inputs as small as each of them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.support.randomise import randomise
from benchmarks.support.timm_models import SMALLEST, image_size
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.running.messages import attempt

QUICK = (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "mobilenet_v3_large"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "googlenet"),
    *("vit_b_16", "swin_t", "convnext_tiny"),
)
TIMM, TRANSFORMERS = "timm:", "transformers:"
BATCH = 2
FULL_SIZE = 224


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with random weights, and what it is run on.

    Attributes:
        model: in eval mode.
        args: positional inputs.
        kwargs: keyword inputs.
        size: height and width of the images; None if there are none.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int | None = None


def torchvision_models() -> list[str]:
    """The names of torchvision's classifiers, those with the fewest parameters first."""
    ensure_torchvision()
    from torchvision import models

    def parameters(name: str) -> int:
        return int(next(iter(models.get_model_weights(name))).meta["num_params"])

    return sorted(models.list_models(module=models), key=parameters)


def timm_models() -> list[str]:
    """The smallest model of each of timm's modules, those with the fewest parameters first."""
    return [TIMM + name for name, _ in sorted(SMALLEST.values(), key=lambda item: item[1])]


def transformers_models() -> list[str]:
    """The small configurations of transformers that the tests have, too."""
    return [TRANSFORMERS + name for name in _configurations()]


SETS: dict[str, Callable[[], list[str]]] = {
    "default": lambda: list(QUICK),
    "torchvision": torchvision_models,
    "timm": timm_models,
    "transformers": transformers_models,
}


def is_known(name: str) -> bool:
    """Whether one of the sets has a model of this name."""
    for prefix, names in ((TIMM, timm_models), (TRANSFORMERS, transformers_models)):
        if name.startswith(prefix):
            return name in names()
    return name in torchvision_models()


def build(name: str, size: int, seed: int) -> Subject:
    """A model with random weights and BatchNorm statistics, and inputs.

    Args:
        name: of one of the sets.
        size: of images, if the model takes such; else the size that it was made for.
        seed: of weights and inputs.
    """
    if name.startswith(TRANSFORMERS):
        model, kwargs = _configured(name.removeprefix(TRANSFORMERS))
        randomise(model, (), seed, kwargs)
        return Subject(model, (), kwargs)
    from fxrebasin.models.by_name import build_model

    model = build_model(name if name.startswith(TIMM) else f"torchvision:{name}").eval()
    images = next(_images_taken(model, size, seed))
    randomise(model, (images,), seed)
    return Subject(model, (images,), size=images.shape[-1])


def _images_taken(model: nn.Module, size: int, seed: int) -> Iterator[Tensor]:
    """Images `[batch, channels, size, size]` on which the model runs; at last those of its size.

    In between are those of the usual size: a model for large images may refuse small ones because
    its patches do not fit them.
    """
    timm = hasattr(model, "pretrained_cfg")
    channels, own = image_size(model)[:2] if timm else (3, FULL_SIZE)
    for side in dict.fromkeys((size, min(FULL_SIZE, own), own)):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(BATCH, channels, side, side, generator=generator)
        with torch.no_grad():
            error = attempt(lambda images=images: model(images))  # type: ignore[misc]
        if error is None or side == own:
            yield images


def _configured(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small configuration, with attention written out where it knows no other."""
    make = _configurations()[name]
    try:
        return make("sdpa")
    except ValueError:
        return make("eager")


def _configurations() -> dict[str, Callable[[str], tuple[nn.Module, dict[str, Tensor]]]]:
    ensure_torchvision()
    from tests.support.text_models import TEXT
    from tests.support.vision_models import VISION

    return {**TEXT, **VISION}
