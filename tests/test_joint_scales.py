"""Factors of units are balanced in one go, however many layers lie behind each other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.passes.match.balance import balanced
from fxrebasin.passes.match.group_problem import GroupProblem
from fxrebasin.passes.match.joint_scales import joint_scales
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.seats import Seats, seats_of


class Residual(nn.Module):
    """Units that several layers write, one of which also reads them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., 1:-1, 1:-1] + self.outer(self.inner(x).relu())).relu()


def chain(layers: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    widths = [3, *(4 + k % 3 for k in range(layers))]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts, nn.Linear(widths[-1], 2))


def residual() -> nn.Module:
    """Convolutions, in two branches that are added."""
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), Residual(4), Residual(4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def posed(net: nn.Module, inputs: Tensor) -> tuple[GroupProblem, Seats, dict[str, Tensor]]:
    """A problem of a network with itself, its seats, and its state."""
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for number, parameter in enumerate(net.double().parameters()):
            noise = torch.randn(parameter.shape, generator=gen, dtype=torch.float64)
            parameter.copy_(noise * 3.0 ** (number % 5 - 2))
    symmetry = fxrebasin.analyze(net, inputs.double(), symmetry="all")
    assert symmetry.groups is not None
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    plain = MatchingProblem(symmetry, state, state, list(state), net, 0)
    problem = GroupProblem(plain, symmetry.permuted, symmetry.groups, state, state)
    return problem, seats_of(problem), state


@pytest.mark.parametrize(
    ("net", "inputs"),
    [(chain(24), torch.randn(2, 3)), (residual(), torch.randn(2, 2, 7, 7))],
)
def test_one_solution_balances_all_layers(net: nn.Module, inputs: Tensor) -> None:
    problem, seats, state = posed(net, inputs)
    names = [c.name for c in problem.classes]
    found = joint_scales(names, seats, state)
    assert found.keys() == set(names)
    assert max(float(item.log().abs().max()) for item in found.values()) > 1
    moved = problem.moved(balanced(problem, seats, state), state)
    for name in names:  # squares of what writes a unit are those of what reads it
        sides = [
            sum(s.rows(moved).square().sum(-1) for s in seats[name] if s.scale == side)
            for side in (1, -1)
        ]
        torch.testing.assert_close(sides[0], sides[1], rtol=1e-11, atol=1e-13)
    again = joint_scales(names, seats, moved)
    assert max(float((item - 1).abs().max()) for item in again.values()) < 1e-12


def test_units_without_anything_on_one_side_stay() -> None:
    net = chain(3)
    problem, seats, state = posed(net, torch.randn(2, 3))
    state["2.weight"][1], state["2.bias"][1] = 0, 0
    state["4.weight"][:, 2] = 0
    found = joint_scales([c.name for c in problem.classes], seats, state)
    second = next(item for name, item in found.items() if name.startswith("2."))
    assert (second == 1).tolist() == [[False, True, True, False, False]]


class Split(nn.Module):
    """Units in heads, summed over the heads and spread to them: scales of both cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 4, 8))
        self.u = nn.Parameter(torch.randn(8, 8))
        self.v = nn.Parameter(torch.randn(8, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("...i,hid->...hd", x, self.w).relu()
        h = torch.einsum("...d,de->...e", h, self.u).relu()
        return torch.einsum("...hd,dho->...o", h, self.v)


@pytest.mark.parametrize("seed", range(4))
def test_a_way_along_which_nothing_changes_ends_a_step(seed: int) -> None:
    torch.manual_seed(seed)
    a, b, x = Split().double(), Split().double(), torch.randn(3, 6, 4).double()
    result = fxrebasin.transform(b, a, x, symmetry="all")
    torch.testing.assert_close(result(-x[:2]), b(-x[:2]), rtol=1e-9, atol=1e-9)
