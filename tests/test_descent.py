"""Method "learned", and the descent along all that leaves a model's function as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.action import Action
from fxrebasin.charts import charts_of
from fxrebasin.errors import InputError
from fxrebasin.passes.match.descent import Batches, Descent, Schedule
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Line, runner


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)
        ).double()


def data(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(40, 3, generator=generator).double() for _ in range(count))
    return [(x, (x.sum(1) > 0).long()) for x in drawn]


def descended(steps: int, seed: int = 0, loader: list[tuple[Tensor, Tensor]] | None = None):
    a, b = net(1), net(2)
    symmetry = fxrebasin.analyze(b, torch.ones(2, 3), symmetry="all")
    assert symmetry.groups is not None
    states = [{k: v.detach() for k, v in m.state_dict().items()} for m in (a, b)]
    shapes = {key: value.shape for key, value in states[1].items()}
    with runner(b, 0) as running:
        line = Line(running, states[0], F.cross_entropy)
        charts = charts_of(symmetry.groups, symmetry.classes)
        action = Action(symmetry.groups, symmetry.classes, shapes)
        found = Descent(line, running.own(states[1]), action, charts)
        batches = Batches(running, loader or data(20))
        steps_made = list(found.run(batches, Schedule(steps, 0.05, 0.1, seed), LateBar()))
    return found, steps_made, b, batches


def test_a_descent_lowers_the_loss_between_and_leaves_the_function() -> None:
    found, steps, b, batches = descended(60)
    assert steps == [*range(1, 61)]
    assert found.loss < found.start - 0.02
    elements = {k: found.charts[k].element(v.double()) for k, v in found.best.items()}
    assert len(elements) >= 2
    state = found.action({k: v.detach() for k, v in b.state_dict().items()}, elements)
    moved = net(3)
    moved.load_state_dict(state)
    x = torch.randn(30, 3).double()
    torch.testing.assert_close(moved(x), b(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(moved[2].weight, b[2].weight, atol=1e-2)
    between = {k: (found.line.state_a[k] + state[k]) / 2 for k in state}
    losses = [
        float(F.cross_entropy(torch.func.functional_call(b, between, batch.args), batch.targets))
        for batch in batches.held_back
    ]
    assert sum(losses) / len(losses) == pytest.approx(found.loss, rel=1e-5)


def test_the_start_is_kept_where_nothing_is_better() -> None:
    first = data(1)
    found, _, _, _ = descended(5, loader=[*first, *[(-x, y) for x, y in data(9, seed=1)]])
    assert found.loss <= found.start < math.inf


def test_a_descent_repeats_for_a_seed() -> None:
    first, second, other = (descended(8, seed)[0].best for seed in (4, 4, 5))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


class Counted(list[tuple[Tensor, Tensor]]):
    """Batches that say how often they were gone through."""

    passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize(("count", "held"), [(1, 1), (5, 1), (11, 2), (200, 8)])
def test_the_first_batches_are_held_back(count: int, held: int) -> None:
    loader = Counted(data(count))
    with runner(net(1), 0) as running:
        batches = Batches(running, loader)
        assert [batch.number for batch in batches.held_back] == [*range(held)]
        seen = [batch.number for batch in islice(batches, 2 * count)]
    expected = [*range(held, count)] or [0]
    assert seen == (expected * (2 * count))[: 2 * count]
    assert loader.passes >= 2


def test_positions_are_near_the_middle_and_rates_fall() -> None:
    schedule = Schedule(100, 0.1, 0.2, 7)
    positions = [*islice(schedule.positions(), 200)]
    assert min(positions) < 0.33 < 0.67 < max(positions)
    assert all(0.3 <= t <= 0.7 for t in positions)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.05)
    assert max(factors) == factors[19]
    assert 0 < factors[-1] < 1e-3
    assert schedule.looks_after(99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"rate": -1.0}, "rate is"),
        ({"spread": 0.6}, "spread is 0.6"),
        ({"spread": True}, "spread is True"),
        ({"start": "luck"}, "no start 'luck'; there are: 'activation', 'weight'"),
        ({"max_batches": 0}, "max_batches is 0"),
        ({"loader": iter([torch.ones(2, 3)])}, "can be gone through only once"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], message: str) -> None:
    given = {"loader": data(2), "loss": F.cross_entropy, **options}
    with pytest.raises(InputError, match=message):
        fxrebasin.match(net(2), net(1), torch.ones(2, 3), method="learned", **given)


def test_permutations_are_learned_from_weights_too() -> None:
    given = {"loader": data(12), "loss": F.cross_entropy, "steps": 10, "start": "weight"}
    found = fxrebasin.match(net(2), net(1), torch.ones(2, 3), method="learned", **given)
    weights = fxrebasin.match(net(2), net(1), torch.ones(2, 3))

    def midpoint(state: dict[str, Tensor]) -> float:
        between = {k: (v + state[k]) / 2 for k, v in net(1).state_dict().items()}
        losses = [
            float(F.cross_entropy(torch.func.functional_call(net(1), between, (x,)), y))
            for x, y in data(12)[:2]  # those that are held back
        ]
        return sum(losses)

    state = net(2).state_dict()
    assert midpoint(found.permute_state_dict(state)) <= midpoint(weights.permute_state_dict(state))
