"""Running statistics that `recalibrate` cannot renew are named: they describe no data."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import FxRebasinWarning
from tests.support.randomise import randomise


class Functional(nn.Module):
    """Two norms, of which forward calls one only and reads the other's statistics itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.read, self.called = nn.BatchNorm2d(4), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.read
        h = F.batch_norm(self.first(x), read.running_mean, read.running_var, read.weight, read.bias)
        return self.called(self.last(torch.relu(h)))


def layers(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 7, 7, generator=generator) for n in (4, 3)]


def ready(model: nn.Module) -> nn.Module:
    randomise(model, 0)
    return model.eval()


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (Functional(), "read.running_mean stay"),
        (layers(nn.InstanceNorm2d(4, track_running_stats=True)), "1.running_mean stay"),
    ],
)
def test_statistics_that_no_batch_norm_layer_reads_are_named(model: nn.Module, left: str) -> None:
    ready(model)
    with pytest.warns(FxRebasinWarning, match=left):
        found = fxrebasin.recalibrate(model, data()).state_dict()
    before = model.state_dict()
    name = left.split()[0]
    assert torch.equal(found[name], before[name])
    last = [key for key in found if key.endswith("running_mean")][-1]
    assert not torch.equal(found[last], before[last])


def test_a_graph_from_export_says_that_nothing_was_renewed() -> None:
    model = ready(layers(nn.BatchNorm2d(4)))
    graph = torch.export.export(model, (data()[0],)).module()
    with pytest.warns(FxRebasinWarning, match=r"1\.running_mean, 4\.running_mean stay as they"):
        fxrebasin.recalibrate(graph, data()[:1])


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.GroupNorm(2, 4),
    ],
)
def test_nothing_is_said_of_what_is_renewed_or_normalises_by_the_batch(norm: nn.Module) -> None:
    model = ready(layers(norm))
    model[0].register_module("unused", nn.InstanceNorm2d(4, track_running_stats=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FxRebasinWarning)
        fxrebasin.recalibrate(model, data())
