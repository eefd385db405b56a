"""timm's models: no operator is unknown, and random elements of the group do nothing.

The smallest model of each module is tried: those of up to a million parameters by default, all
with `-m slow`. The largest, of which float64 copies would take 10 GB, are only analysed.
"""

from __future__ import annotations

import pytest
import torch

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.timm_models import SMALLEST, build, fewest_parameters, image_size, modules

pytest.importorskip("timm")

QUICK = 1_000_000
ANALYSED_ONLY = 200_000_000


def marked() -> list[object]:
    """The modules, of which those with a large model are marked as slow."""
    return [
        module if count <= QUICK else pytest.param(module, marks=pytest.mark.slow)
        for module, (_, count) in SMALLEST.items()
    ]


def test_every_module_has_a_model() -> None:
    assert list(SMALLEST) == modules()
    assert sum(count <= QUICK for _, count in SMALLEST.values()) >= 10


@pytest.mark.parametrize("module", marked())
def test_group_is_sound(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, count = SMALLEST[module]
    model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    shape = image_size(model)
    batch = 1 if max(shape) > 400 else 2
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    symmetry = fxrebasin.analyze(model, images)
    assert symmetry.unknown_operators == ()
    assert symmetry.classes
    assert symmetry.coverage() > 0.8
    if count < ANALYSED_ONLY:
        # Some compute in float32 on purpose, which would hide errors as noise
        monkeypatch.setattr(torch.Tensor, "float", _widened)
        assert_group_is_sound(model, (images,), symmetry=symmetry, seeds=(0,))


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() else tensor.double()


@pytest.mark.slow
@pytest.mark.parametrize("module", SMALLEST)
def test_no_model_is_smaller(module: str) -> None:
    assert fewest_parameters(module) == SMALLEST[module][1]


def test_heads_are_found_however_many_positions_attend() -> None:
    layer = pytest.importorskip("timm.layers.halo_attn")
    torch.manual_seed(0)
    attention = layer.HaloAttn(32, 32, num_heads=8, dim_head=4, qk_ratio=1.0)
    for table in (attention.pos_embed.height_rel, attention.pos_embed.width_rel):
        torch.nn.init.normal_(table)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 1), attention, torch.nn.Conv2d(32, 5, 1)
    ).eval()
    orders = [
        fxrebasin.analyze(model, torch.randn(batch, 3, 16, 16)).log10_order() for batch in (2, 3)
    ]
    assert orders[0] == pytest.approx(orders[1])
    assert orders[0] > 52
