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


def twice() -> nn.Module:
    """Norms in front of and behind each ReLU, and convolutions that keep channels apart."""
    first = (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    apart = (nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*first, *apart, nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual,
    "in a row": in_a_row,
    "twice": twice,
}


class Attention(nn.Module):
    """Values whose bias nothing but a norm of what is made of them could take back."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 5) for _ in range(3))
        self.output = nn.Linear(5, 6, bias=False)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        shares = (self.query(x) @ self.key(x).mT).softmax(-1)
        made = self.output(shares @ self.value(x)).flatten(0, 1)
        found: Tensor = self.head(self.norm(made).relu())
        return found


def without_affine() -> nn.Module:
    """Statistics alone, which no parameter behind them makes up for."""
    first = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 5, 3))
    second = (nn.BatchNorm2d(5, affine=False), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Flatten())
    return nn.Sequential(*first, *second)


TRAINED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (built, (3, 8, 8)) for name, built in NETWORKS.items()},
    "attention": (Attention, (4, 6)),
    "without affine": (without_affine, (3, 8, 8)),
}


def drawn(name: str) -> nn.Module:
    net = NETWORKS[name]().double()
    randomise(net, 1)
    return net.eval()


def numbers(net: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in net.state_dict().items() if v.is_floating_point()}


def apart(one: nn.Module, two: nn.Module) -> float:
    state = numbers(one)
    return max(float((state[k] - v).norm() / v.norm()) for k, v in numbers(two).items())


def element_of(net: nn.Module, inputs: Tensor) -> Alignment:
    """An element that permutes every class, and does more to it where that is possible."""
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    return Alignment(symmetry.random(3), symmetry.groups, elements_of(symmetry))


def planted(net: nn.Module, inputs: Tensor) -> nn.Module:
    """The network after an element that scales every class and permutes it."""
    element = element_of(net, inputs)
    assert {own.kind for own in element.groups.kinds.values()} == {GroupKind.POSITIVE}
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


def in_training(net: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What a network returns in training, and its statistics after that."""
    there = copy.deepcopy(net).train()
    return there(inputs).detach(), dict(there.named_buffers())


@pytest.mark.parametrize("name", TRAINED)
def test_the_function_in_training_stays_too(name: str) -> None:
    built, shape = TRAINED[name]
    gen = torch.Generator().manual_seed(4)
    inputs, others = (torch.randn(n, *shape, generator=gen).double() for n in (2, 16))
    nets = [built().double(), built().double()]
    for seed, net in enumerate(nets):
        randomise(net, seed + 1).eval()
    reference, net = nets
    element = element_of(net, inputs)
    moved = copy.deepcopy(net)
    moved.load_state_dict(element.apply(net.state_dict()))
    assert apart(moved, net) > 0.1
    found = fxrebasin.match(moved, reference, inputs, symmetry="all")
    for certificate, start in ((element, net), (found, moved)):
        assert isinstance(certificate, Alignment)
        end = copy.deepcopy(net)
        end.load_state_dict(certificate.apply(start.state_dict()))
        (before, one), (after, two) = (in_training(item, others) for item in (start, end))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12 * float(before.abs().max()))
        held = [{**start.state_dict(), **item} for item in ({}, one)]
        for old, new in zip(held, (dict(end.named_buffers()), two), strict=True):
            there = certificate.permutation.permute_state_dict(old)
            for key, buffer in new.items():  # of units that may have changed their signs
                torch.testing.assert_close(buffer.abs(), there[key].abs(), rtol=1e-12, atol=1e-12)


def test_the_function_stays_after_statistics_are_made_anew() -> None:
    net = drawn("residual")
    batches = [torch.randn(8, 3, 8, 8).double() for _ in range(3)]
    moved = planted(net, batches[0])
    with torch.no_grad():
        before, after = (fxrebasin.recalibrate(n, batches)(batches[0]) for n in (net, moved))
    assert not torch.allclose(before, net(batches[0]))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_statistics_hold_units_that_nothing_behind_them_scales() -> None:
    """In eval mode units could be scaled; training would see it."""
    net = randomise(without_affine().double().eval(), 1)
    symmetry = fxrebasin.analyze(net, torch.randn(2, 3, 8, 8).double(), symmetry="all")
    kinds = {c.size: c.kind for c in symmetry.classes}
    assert kinds == {6: GroupKind.PERMUTATION, 5: GroupKind.SIGNED}
    assert "1.running_mean is a statistic" in symmetry.explain("0.weight", 0)


def test_units_that_two_scalings_act_on_need_no_bias() -> None:
    """The second one is counted, and left as it is: nothing says how to choose it."""
    layers = (nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, bias=False))
    ends = (nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*layers, *ends).double().eval()
    inputs = torch.randn(2, 3, 8, 8).double()
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.dimension() == 12
    other = planted(net, inputs)
    assert apart(other, net) > 0.1
    result = fxrebasin.transform(other, net, inputs, symmetry="all")
    assert apart(result, net) <= 1e-9
