"""Method `weight` over groups: where it starts, and how often it sets out again."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.errors import InputError
from fxrebasin.passes.match import group_weight
from fxrebasin.passes.match.balance import Balanced
from fxrebasin.passes.match.group_problem import GroupProblem
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.shaking import shaken
from tests.support.elements import elements_of
from tests.support.randomise import randomise
from tests.support.tiny_transformers import Form, Transformer, drawn

LLAMA = Form(
    layers=1, width=8, hidden=6, heads=2, centred=False, biases=False, rotary=True, gate=True
)
GPT = Form(width=8, hidden=6, heads=2)


def agreed(one: Transformer, two: Transformer, **options: Any) -> float:
    """What is left between two models after matching."""
    inputs = one.batch(2, 0)
    found = fxrebasin.match(two, ref=one, example_inputs=inputs, symmetry="all", **options)
    moved = found.apply(two.state_dict())
    state = one.state_dict()
    return sum(float((moved[k] - v).square().sum()) for k, v in state.items())


def test_restarts_find_more_and_repeat() -> None:
    one, two = drawn(LLAMA, 1), drawn(LLAMA, 2)
    plain = agreed(one, two)
    more = agreed(one, two, restarts=12)
    assert more < plain
    assert agreed(one, two, restarts=12) == more
    assert agreed(one, two, restarts=0) == plain


def test_starts_are_different_and_the_better_one_is_kept() -> None:
    one, two = drawn(GPT, 1), drawn(GPT, 2)
    inputs = one.batch(2, 0)

    def reached(init: str) -> float:
        result = fxrebasin.transform(two, one, inputs, symmetry="all", init=init)
        return float(result.meta["fxrebasin"].objective_after)

    evidence, identity, both = (reached(init) for init in ("evidence", "identity", "both"))
    assert evidence != identity
    assert both in (evidence, identity)


class PostNorm(nn.Module):
    """A stream that goes through the scales of norms: matrices mix dimensions of heads only."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.begin = nn.Linear(5, 12)
        layers = [nn.TransformerEncoderLayer(12, 3, 10, 0.0, batch_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.end = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.end(self.layers(self.begin(x)))
        return found


def test_the_best_permutation_is_a_start_where_only_heads_are_mixed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is reached from there is as good as without it, and better for some."""
    with torch.random.fork_rng():
        nets = [randomise(PostNorm(seed).eval(), seed).double() for seed in range(6)]
        inputs = torch.randn(2, 7, 5).double()
    reached: list[float] = []
    restart = group_weight._Search.restart

    def recorded(search: Any, effort: Any, report: Any) -> None:
        reached.append(search.best.agreement())
        restart(search, effort, report)

    monkeypatch.setattr(group_weight._Search, "restart", recorded)
    gains = []
    for other in nets[1:]:
        for init in ("evidence", "auto"):
            fxrebasin.match(other, nets[0], inputs, symmetry="all", init=init)
        gains.append(reached[-1] - reached[-2])
    assert min(gains) >= 0
    assert max(gains) > 1e-3 * reached[-1]


def test_a_budget_ends_the_search() -> None:
    one, two = drawn(GPT, 1), drawn(GPT, 2)
    assert agreed(one, two, budget=1e-6) == agreed(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "luck"}, "no start 'luck'"),
        ({"restarts": -1}, "restarts"),
        ({"budget": 0}, "budget"),
        ({"max_sweeps": 0}, "max_sweeps"),
        ({"effort": 3}, "has no option 'effort'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    net = drawn(GPT, 1)
    with pytest.raises(InputError, match=message):
        fxrebasin.match(net, net, net.batch(2, 0), symmetry="all", **options)


@pytest.mark.parametrize("form", [GPT, LLAMA])
def test_what_a_search_sets_out_from_keeps_the_function(form: Form) -> None:
    net = drawn(form, 1)
    inputs = net.batch(3, 0)
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    groups = symmetry.groups
    assert groups is not None
    state = {k: v.double() for k, v in net.state_dict().items()}
    plain = MatchingProblem(symmetry, state, state, list(state), net, 0)
    problem = GroupProblem(plain, (*symmetry.permuted, *groups.turned), groups, state, state)
    balanced = Balanced.of(problem)
    element = shaken(balanced.problem, problem.identity(), np.random.default_rng(5))
    back = balanced.back(element)
    certificate = Alignment(back.permutation, groups, back.elements)
    moved = certificate.apply(net.state_dict())
    assert max(float((moved[k] - v).abs().max()) for k, v in net.state_dict().items()) > 0.1
    with torch.no_grad():
        before = net(inputs)
        net.load_state_dict(moved)
        torch.testing.assert_close(net(inputs), before, atol=1e-9, rtol=1e-9)


def test_scales_of_relu_units_are_matched_from_each_start() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net, other = (
            nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).double() for _ in "ab"
        )
        inputs = torch.randn(5, 4).double()
    for init in ("auto", "evidence", "identity", "both"):
        result = fxrebasin.transform(other, net, inputs, symmetry="all", init=init, restarts=1)
        assert result.meta["fxrebasin"].equivalence.max_rel <= 1e-10


def test_scales_that_gain_next_to_nothing_are_left_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net, other = (
            nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5)).double() for _ in "ab"
        )
        inputs = torch.randn(5, 6).double()
    found = fxrebasin.match(other, net, inputs, symmetry="all")
    plain = fxrebasin.match(other, net, inputs)
    states = [found.apply(other.state_dict()), plain.permute_state_dict(other.state_dict())]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    with torch.no_grad():  # the same network with other scales is worth it
        for key, value in states[1].items():
            net.state_dict()[key].copy_(value)
        net[0].weight[3] *= 7
        net[0].bias[3] *= 7
        net[2].weight[:, 3] /= 7
    again = fxrebasin.match(other, net, inputs, symmetry="all").apply(other.state_dict())
    for key, value in net.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=1e-9, atol=1e-12)


class Words(nn.Module):
    """Fewer words than units, or fewer outputs, with nothing in between."""

    def __init__(self, words: int, units: int, outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, units)
        self.heads = nn.ModuleList(nn.Linear(units, outputs, bias=False) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        one, two = (head(self.words(x)) for head in self.heads)
        return torch.cat([one.sin(), two.tanh()], -1)


@pytest.mark.parametrize(("words", "outputs"), [(3, 5), (9, 2), (9, 5)])
def test_matrices_are_found_where_vectors_are_fewer_than_units(words: int, outputs: int) -> None:
    net = Words(words, 6, outputs).double()
    gen = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen, dtype=torch.float64))
    inputs = torch.arange(words)
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    elements = {k: v for k, v in elements_of(symmetry).items() if k.startswith("words")}
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    moved = Alignment(symmetry.random(3), symmetry.groups, elements).apply(state)
    assert (moved["words.weight"] - state["words.weight"]).norm() > 1
    other = copy.deepcopy(net)
    other.load_state_dict(moved)
    found = fxrebasin.match(other, net, inputs, symmetry="all")
    back = found.apply(moved)
    for name, tensor in state.items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("scale", "grew"), [(30.0, True), (1.0, False)])
def test_a_distance_that_grew_in_the_scales_of_the_reference_is_noted(
    scale: float, grew: bool
) -> None:
    one, two = drawn(GPT, 1), drawn(GPT, 2)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "query" in name:
                parameter *= scale
            elif "key" in name:
                parameter /= scale
    found = fxrebasin.transform(two, one, one.batch(2, 0), symmetry="all").meta["fxrebasin"]
    assert (found.distance_after > found.distance_before) is grew
    assert any("The distance grew" in note for note in found.notes) is grew
