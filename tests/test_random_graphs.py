"""Random models put together from pieces: groups are sound, planted permutations are found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import (
    TOLERANCE,
    assert_group_is_sound,
    difference,
    outputs,
    permuted,
    randomise,
)

WIDTH, TOKENS = 12, 5
PIECES: dict[str, Callable[[], nn.Module]] = {}


def piece(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Register a piece: a module that maps [batch, tokens, width] to the same shape."""
    PIECES[make.__name__] = make
    return make


@piece
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 7),
            nn.Linear(7, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(F.gelu(self.enter(self.norm(x))))


@piece
class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 10), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.enter(x).chunk(2, -1)
        return self.leave(gate.sigmoid() * value)


@piece
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@piece
class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = (
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=3),
            nn.BatchNorm1d(WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.transpose(1, 2))).relu().transpose(1, 2)


@piece
class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH)
        self.leave = nn.Conv1d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.conv(x.transpose(1, 2)).tanh()).transpose(1, 2)


@piece
class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.leave = (
            nn.Linear(WIDTH, 4),
            nn.Linear(WIDTH, 6),
            nn.Linear(10, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([self.one(x).relu(), self.two(x).tanh()], -1))


@piece
class Reshape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.view(*x.shape[:2], 3, 4) * self.scale + self.shift).flatten(2)


@piece
class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (2, WIDTH // 2)).transpose(-1, -2).flatten(-2) + self.bias


@piece
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, WIDTH)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.bias).tanh(), self.weight.t())


@piece
class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        y[..., : WIDTH // 2].mul_(2).add_(1)
        return y.relu_()


@piece
class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.leave(self.enter(x.mean(1, keepdim=True)).relu()).sigmoid()


@piece
class TokenMixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(TOKENS, 6), nn.Linear(6, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.enter(x.mT).relu()).mT


class Stack(nn.Module):
    """Pieces between two linear layers; some are used a second time."""

    def __init__(self, names: Sequence[str], again: Sequence[int]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.pieces = nn.ModuleList(PIECES[name]() for name in names)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for each in self.pieces:
            x = each(x)
        for index in self.again:
            x = self.pieces[index % len(self.pieces)](x)
        return self.leave(x)


STACKS = {
    "names": st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4),
    "again": st.lists(st.integers(0, 3), max_size=1),
}
QUIET = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def images() -> Tensor:
    return torch.randn(2, TOKENS, 3, generator=torch.Generator().manual_seed(0))


@QUIET
@given(**STACKS)
def test_a_random_element_changes_nothing(names: list[str], again: list[int]) -> None:
    model = Stack(names, again)
    symmetry = fxrebasin.analyze(model, images())
    assert symmetry.unknown_operators == ()
    drawn = randomise(model.double())
    moved = permuted(drawn, symmetry.random(0))
    inputs = (images().double(),)
    assert difference(outputs(drawn, inputs, {}), outputs(moved, inputs, {})) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(PIECES.keys() - {"Tied"}))
def test_a_fault_in_a_piece_would_be_seen(name: str) -> None:
    """Of one that is not saturated: the weights of `Tied` are all of one sign."""
    assert_group_is_sound(Stack([name], []), (images(),), seeds=(0,))


@settings(QUIET, max_examples=25)
@given(**STACKS)
def test_planted_permutations_are_found(names: list[str], again: list[int]) -> None:
    a = randomise(Stack(names, again)).eval()
    symmetry = fxrebasin.analyze(a, images())
    b = permuted(copy.deepcopy(a), symmetry.random(seed=3))
    found = fxrebasin.match(b, ref=a, example_inputs=images())
    state = found.permute_state_dict(b.state_dict())
    wrong = [
        name for name, tensor in a.state_dict().items() if not torch.equal(tensor, state[name])
    ]
    assert not wrong
