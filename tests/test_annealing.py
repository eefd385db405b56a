"""Where the search over groups begins: matrices count for as much as is known of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fxrebasin
from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.passes.match import annealing, group_weight
from fxrebasin.passes.match.best_elements import Agreement, best
from fxrebasin.passes.match.expected_elements import expected
from tests.support.tiny_transformers import Form, drawn

PARTNER = (3, 4, 5, 0, 1, 2)
KINDS = {
    "orthogonal": ClassKind(GroupKind.ORTHOGONAL, {}, {}),
    "ones fixed": ClassKind(GroupKind.ORTHOGONAL_FIXING_ONES, {}, {}),
    "balanced": ClassKind(GroupKind.GENERAL_LINEAR, {}, {}),
    "pairs": ClassKind(GroupKind.COMPLEX_PAIRS, {}, {}, partner=PARTNER),
}


def agreement(size: float) -> Agreement:
    """Of two copies of six units."""
    gen = torch.Generator().manual_seed(0)
    even = size * torch.randn(2, 6, 6, generator=gen, dtype=torch.float64)
    return Agreement(even, torch.zeros_like(even))


def element(own: ClassKind, size: float) -> Tensor:
    """What is expected where units agree by about so much."""
    return expected(own, agreement(size)).maps[:, 0]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_expected_goes_from_nothing_to_what_fits_best(name: str) -> None:
    own = KINDS[name]
    nothing = torch.full((6, 6), 1 / 6 if name == "ones fixed" else 0.0, dtype=torch.float64)
    torch.testing.assert_close(element(own, 0.0), nothing.expand(2, 6, 6))
    fits = best(own, agreement(1.0)).element
    torch.testing.assert_close(element(own, 1e7), fits, rtol=0, atol=1e-5)
    lengths = [torch.linalg.svdvals(element(own, size)) for size in (0.1, 1.0, 10.0)]
    assert all((one <= two + 1e-9).all() for one, two in itertools.pairwise(lengths))
    assert lengths[-1].max() <= 1 + 1e-9


def test_a_direction_of_which_nothing_is_known_stays_out() -> None:
    """Where the best matrix is any of many, the expected one takes none."""
    even = torch.zeros(1, 4, 4, dtype=torch.float64)
    even[0, 0, 1] = 50.0
    found = expected(KINDS["orthogonal"], Agreement(even, torch.zeros_like(even))).maps
    assert found[0, 0, 0, 1] > 0.9
    found[0, 0, 0, 1] = 0
    assert float(found.abs().max()) < 1e-9


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_pairs_are_expected_as_angles_are(size: float) -> None:
    """The mean of cos over all angles, each as likely as e to the power of size times cos."""
    own = ClassKind(GroupKind.COMPLEX_PAIRS, {}, {}, partner=(1, 0))
    even = size / 2 * torch.eye(2, dtype=torch.float64)[None]
    found = expected(own, Agreement(even, torch.zeros_like(even)))
    angles = [2 * math.pi * k / 1000 for k in range(1000)]
    weights = [math.exp(size * math.cos(angle)) for angle in angles]
    mean = sum(w * math.cos(a) for w, a in zip(weights, angles, strict=True)) / sum(weights)
    assert float(found.maps[0, 0, 0, 0]) == pytest.approx(mean, rel=0.1)
    assert float(found.gain) == pytest.approx(math.log(sum(weights) / 1000), rel=0.15)


@pytest.mark.parametrize("kind", [GroupKind.PERMUTATION, GroupKind.SIGNED])
def test_units_are_expected_in_shares(kind: GroupKind) -> None:
    own = ClassKind(kind, {}, {})
    gen = torch.Generator().manual_seed(1)
    even, odd = torch.randn(2, 1, 6, 6, generator=gen, dtype=torch.float64)
    factors = None
    for _ in range(20):
        found = expected(own, Agreement(even, odd), factors)
        factors = found.factors
    shares, changed = found.maps[0, 0], found.maps[0, -1]
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(shares.sum(0), ones)
    torch.testing.assert_close(shares.sum(1), ones, rtol=1e-6, atol=1e-6)
    assert bool((changed.abs() <= shares + 1e-12).all())
    assert torch.equal(shares, changed) is (kind is GroupKind.PERMUTATION)
    for size in (2, 4, 8, 16, 32, 64):
        for _ in range(50):
            sure = expected(own, Agreement(size * even, size * odd), factors)
            factors = sure.factors
    order = best(own, Agreement(even, odd)).order
    assert order is not None
    assert torch.equal(sure.maps[0, 0].argmax(-1), order[0])


def test_the_search_begins_where_it_gets_farther(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than from classes decided one after another; matrices of many units keep to that."""
    form = Form(
        layers=2, width=12, hidden=8, heads=2, centred=False, biases=False, rotary=True, gate=True
    )
    reached: list[float] = []

    def recorded(search: Any, effort: Any, report: Any) -> None:
        reached.append(search.best.share())

    monkeypatch.setattr(group_weight._Search, "restart", recorded)
    pairs = [(drawn(form, 2 * seed), drawn(form, 2 * seed + 1)) for seed in (2, 3, 4)]
    for one, two in pairs:
        for init in ("evidence", "auto"):
            fxrebasin.match(two, ref=one, example_inputs=one.batch(2, 0), symmetry="all", init=init)
        assert reached[-1] > reached[-2] + 0.005
    monkeypatch.setattr(annealing, "_MOST", 100)
    one, two = pairs[-1]
    fxrebasin.match(two, ref=one, example_inputs=one.batch(2, 0), symmetry="all")
    assert reached[-1] == reached[-3]
