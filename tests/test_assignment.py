"""Linear assignments: optimal, with ties settled the same way every time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fxrebasin.solvers import cheapest
from fxrebasin.solvers.assignment import (
    assign,
    assign_batch,
    assign_in_place,
    collected,
    improves,
)
from fxrebasin.solvers.scaling import costs_in_place, easy_costs


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 17, 64, 111, 112, 200, 300])
@pytest.mark.parametrize("kind", ["uniform", "gram", "planted", "low rank", "whole numbers"])
def test_assignments_are_optimal(n: int, kind: str) -> None:
    draw = np.random.default_rng(n)
    if kind == "uniform":
        gains = draw.random((n, n))
    elif kind == "whole numbers":
        gains = draw.integers(0, 4, (n, n)).astype(np.float64)
    else:
        a = draw.standard_normal((n, 2 if kind == "low rank" else 50)).astype(np.float32)
        b = a[draw.permutation(n)] if kind == "planted" else draw.standard_normal(a.shape)
        gains = (a @ b.T).astype(np.float32)
    found = assign(gains)
    assert sorted(found) == list(range(n))
    rows, columns = linear_sum_assignment(gains, maximize=True)
    here = gains[np.arange(n), found].sum(dtype=np.float64)
    assert here == pytest.approx(gains[rows, columns].sum(dtype=np.float64), rel=1e-6)
    prices = np.zeros(n)
    for changed in (gains, gains + 0.01 * draw.standard_normal((n, n)).astype(gains.dtype), -gains):
        rows, columns = linear_sum_assignment(changed, maximize=True)
        here = changed[np.arange(n), assign(changed, prices=prices)].sum(dtype=np.float64)
        best = changed[rows, columns].sum(dtype=np.float64)
        assert here == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_ties_are_settled_by_what_is_preferred() -> None:
    draw = np.random.default_rng(0)
    for n in (3, 8, 40, 200):
        prefer = draw.permutation(n)
        assert (assign(np.zeros((n, n))) == np.arange(n)).all()
        assert (assign(np.full((n, n), 3.0), prefer) == prefer).all()
        # Rows 0 to n/2 are alike, and so are columns.
        gains = np.kron(np.eye(2), np.ones((n // 2, n // 2)))
        assert (assign(gains) == np.arange(len(gains))).all()
        batch = assign_batch(np.zeros((4, n, n)), np.stack([prefer] * 4))
        assert (batch == prefer).all()


def test_a_gain_is_told_from_rounding() -> None:
    gains = np.diag(np.array([1e6, 1.0, 1.0])).astype(np.float32)
    here, swapped = np.arange(3), np.array([0, 2, 1])
    assert improves(gains, here, swapped)
    assert not improves(gains, swapped, here)
    assert not improves(gains, here, here)
    gains[1, 2] = gains[2, 1] = np.nextafter(np.float32(1), np.float32(0))
    assert not improves(gains, here, swapped)


@pytest.mark.parametrize("n", [112, 200, 770])
def test_prices_are_left_for_next_time_and_never_change_the_solution(n: int) -> None:
    draw = np.random.default_rng(n)
    a, b = (draw.standard_normal((n, 60)).astype(np.float32) for _ in "ab")
    gains = a @ b.T
    prices = np.zeros(n)
    first = assign(gains, prices=prices)
    assert prices.any()
    after_many = assign(gains, prices=prices)
    after_nonsense = assign(gains, prices=draw.standard_normal(n) * 1e4)
    assert (first == after_many).all()
    assert (first == after_nonsense).all()


@pytest.mark.parametrize("n", [100, 700])
def test_scaled_prices_leave_most_rows_content(n: int) -> None:
    draw = np.random.default_rng(0)
    gains = np.outer(draw.random(n), draw.random(n)) + 0.1 * draw.standard_normal((n, n))
    gains = gains.astype(np.float32)
    prices = np.zeros(n)
    content = [len(set((gains - prices).argmax(axis=1)))]
    easy_costs(gains, prices)
    content.append(len(set((gains - prices).argmax(axis=1))))
    assert content[0] < 0.4 * n
    assert content[1] > 0.6 * n
    easy_costs(np.ones((5, 5)), unchanged := np.zeros(5))
    assert not unchanged.any()


def test_scipy_takes_the_place_of_lapx(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    assert cheapest.one is not None
    for n in (20, 200):
        gains = draw.standard_normal((3, n, n))
        expected = assign_batch(gains)
        assert (expected == [assign(each) for each in gains]).all()
        with monkeypatch.context() as patch:
            patch.setattr(cheapest, "one", None)
            patch.setattr(cheapest, "many", None)
            assert (assign_batch(gains) == expected).all()
        for each, found in zip(gains, expected, strict=True):
            assert (linear_sum_assignment(each, maximize=True)[1] == found).all()
    assert assign_batch(np.zeros((0, 20, 20))).shape == (0, 20)


@pytest.mark.parametrize("n", [3, 60, 130, 300])
@pytest.mark.parametrize("kind", ["random", "planted", "tied", "low rank"])
def test_in_place_the_same_is_collected_and_gains_come_back(n: int, kind: str) -> None:
    generator = np.random.default_rng([n, len(kind)])
    gains = generator.standard_normal((n, n)).astype(np.float32)
    if kind == "planted":
        gains[np.arange(n), generator.permutation(n)] += 4
    elif kind == "tied":
        gains = np.round(gains)
    elif kind == "low rank":
        gains = gains[:, :2] @ gains[:2]
    before = gains.copy()
    expected = collected(before, assign(before.copy()))
    found = assign_in_place(gains)
    assert sorted(found) == list(range(n))
    assert collected(before, found) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    np.testing.assert_allclose(gains, before, atol=2e-5 * max(1, np.abs(before).max()))


def test_in_place_no_second_matrix_is_made() -> None:
    gains = np.random.default_rng(0).standard_normal((1200, 1200)).astype(np.float32)
    tracemalloc.start()
    try:
        costs_in_place(gains, np.zeros(1200))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < gains.nbytes / 2
