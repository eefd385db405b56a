"""Elements of the whole group, planted in networks with running statistics, are found again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.kinds import GroupKind
from tests.support.elements import elements_of
from tests.support.randomise import randomise


class Block(nn.Module):
    """Two convolutions with their norms, added to what comes in."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.up_norm = nn.BatchNorm2d(hidden)
        self.down = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down_norm(self.down(self.up_norm(self.up(x)).relu()))
        return (x + made).relu()


def residual() -> nn.Module:
    """A stem, a block on its stream, and a classifier."""
    stem = (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return nn.Sequential(*stem, Block(6, 5), *head)


def in_a_row() -> nn.Module:
    """Convolutions and a linear layer, each with a bias and a norm."""
    first = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, nn.Linear(54, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"residual": residual, "in a row": in_a_row}


def drawn(name: str) -> nn.Module:
    net = NETWORKS[name]().double()
    randomise(net, 1)
    return net.eval()


def numbers(net: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if v.is_floating_point()}


def apart(one: nn.Module, two: nn.Module) -> float:
    state = numbers(one)
    return max(float((state[k] - v).norm() / v.norm()) for k, v in numbers(two).items())


def planted(net: nn.Module, inputs: Tensor) -> nn.Module:
    """The network after an element that scales every class and permutes it."""
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    assert {c.kind for c in symmetry.classes} == {GroupKind.POSITIVE}
    element = Alignment(symmetry.random(3), symmetry.groups, elements_of(symmetry))
    other = copy.deepcopy(net)
    other.load_state_dict(element.apply(net.state_dict()))
    return other


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["weight", "activation"])
def test_a_planted_element_is_found(name: str, method: str) -> None:
    net = drawn(name)
    inputs = torch.randn(5, 3, 8, 8).double()
    other = planted(net, inputs)
    assert apart(other, net) > 0.5
    given: dict[str, Any] = {"loader": [inputs]} if method == "activation" else {}
    result = fxrebasin.transform(other, net, inputs, symmetry="all", method=method, **given)
    assert apart(result, net) <= 1e-9
    assert result.meta["fxrebasin"].equivalence.max_rel <= 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_planted_is_an_element_alone(name: str) -> None:
    net = drawn(name)
    symmetry = fxrebasin.analyze(net, torch.randn(5, 3, 8, 8).double(), symmetry="all")
    assert symmetry.groups is not None
    nothing = Alignment(symmetry.identity(), symmetry.groups, {})
    state = nothing.apply(net.state_dict())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
