"""torchvision's classifiers: no operator is unknown, and random elements of the group do nothing.

By default a few of each family are tried; `-m slow` tries all others. The two largest, of which
float64 copies would take 10 GB, are only analysed.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import BLIND, TOLERANCE, difference
from tests.support.zoo import build, classifiers, fill, image_size

pytest.importorskip("torchvision")

ALL = classifiers()

DEFAULT = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vit_b_32"),
)
"""Members of all families but VGG, whose classifier is AlexNet's, and MaxViT, which is large."""

ANALYSED_ONLY = ("regnet_y_128gf", "vit_h_14")
"""645 and 633 million parameters."""


def marked(names: list[str]) -> list[object]:
    slow = pytest.mark.slow
    return [name if name in DEFAULT else pytest.param(name, marks=slow) for name in names]


def analysed(name: str) -> tuple[nn.Module, fxrebasin.Symmetry]:
    model = build(name)
    size = image_size(name)
    symmetry = fxrebasin.analyze(model, torch.empty(2, 3, size, size, device="meta"))
    assert symmetry.unknown_operators == ()
    assert symmetry.classes
    return model, symmetry


def run(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(images)
    assert isinstance(found, Tensor)
    return found


def test_there_are_80() -> None:
    assert len(ALL) == 80
    assert {*DEFAULT, *ANALYSED_ONLY} <= set(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANALYSED_ONLY)
def test_it_is_analysed(name: str) -> None:
    analysed(name)


@pytest.mark.parametrize("name", marked([name for name in ALL if name not in ANALYSED_ONLY]))
def test_a_random_element_changes_nothing(name: str) -> None:
    model, symmetry = analysed(name)
    fill(model, seed=1)
    size = image_size(name)
    images = torch.randn(
        1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    before = run(model, images)
    state = model.state_dict()
    moved = symmetry.random(0).permute_state_dict(state)
    victim = next(name for name in state if not torch.equal(state[name], moved[name]))
    untouched = state[victim].clone()
    model.load_state_dict(moved)
    del state, moved
    assert difference([before], [run(model, images)]) <= TOLERANCE

    model.state_dict()[victim].copy_(untouched)
    assert difference([before], [run(model, images)]) > BLIND
    del model
    gc.collect()
