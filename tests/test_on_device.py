"""Gains that are solved where they are; on a GPU as well, where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.solvers.assignment import assign
from fxrebasin.solvers.on_device import clear_order, to_host
from fxrebasin.solvers.pairs import blocks_of, blocks_of_both, inner
from tests.support.randomise import randomise

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def planted(n: int, noise: float) -> tuple[torch.Tensor, np.ndarray]:
    """Gains of rows that are others in another order, with noise."""
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 64, generator=generator)
    order = torch.randperm(n, generator=generator)
    other = torch.empty_like(rows)
    other[order] = rows + noise * torch.randn(n, 64, generator=generator)
    return rows @ other.T, order.numpy()


@pytest.mark.parametrize("n", [2, 30, 300])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_is_clear_is_what_the_assignment_finds(n: int, noise: float) -> None:
    gains, order = planted(n, noise)
    before = gains.clone()
    found = clear_order(gains)
    assert found is not None
    assert np.array_equal(found, order)
    assert np.array_equal(found, assign(gains.numpy()))
    assert torch.equal(gains, before)


def test_rows_that_want_the_same_column_are_settled_by_prices() -> None:
    gains, order = planted(40, 0.3)
    gains += 100 * torch.rand(40, generator=torch.Generator().manual_seed(1))  # columns all want
    assert len(set(gains.argmax(1).tolist())) < 40
    found = clear_order(gains)
    assert found is not None
    assert np.array_equal(found, order)


@pytest.mark.parametrize("kind", ["equal", "twins", "noise"])
def test_what_is_in_doubt_is_left_to_the_assignment(kind: str) -> None:
    gains, _ = planted(50, 0.0)
    if kind == "equal":
        gains = torch.ones(50, 50)
    elif kind == "twins":
        gains[7] = gains[8]
    else:
        gains = torch.randn(50, 50, generator=torch.Generator().manual_seed(2))
    found = clear_order(gains)
    assert found is None or (kind == "noise" and np.array_equal(found, assign(gains.numpy())))
    assert kind == "noise" or found is None


def test_on_the_cpu_numpy_sees_the_tensor_itself() -> None:
    tensor = torch.zeros(3, 3)
    to_host(tensor)[1, 2] = 5
    assert tensor[1, 2] == 5


def test_both_are_cut_alike() -> None:
    one = torch.arange(3 * 2**17).float()
    parts = list(blocks_of_both(one, one + 1))
    assert len(parts) == len(blocks_of(one)) == 3
    assert all(torch.equal(x + 1, y) for x, y in parts)


def model(seed: int) -> nn.Module:
    """Convolutions with BatchNorm around a skip, and layers that share nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 130, 3), nn.BatchNorm2d(130), nn.ReLU(), nn.Conv2d(130, 20, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(20 * 16, 150), nn.ReLU(), nn.Linear(150, 10),
    )  # fmt: skip
    return randomise(net, seed).eval()


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@needs_cuda
def test_on_a_gpu_the_same_is_found() -> None:
    a, b = model(1), model(2)
    expected = fxrebasin.match(b, ref=a, example_inputs=IMAGES)
    found = fxrebasin.match(b.cuda(), ref=a.cuda(), example_inputs=IMAGES.cuda())
    for name, array in expected.arrays.items():
        assert np.array_equal(found.arrays[name], array)


@needs_cuda
def test_on_a_gpu_a_planted_permutation_is_recovered_and_proved() -> None:
    a = model(1).cuda()
    planted_one = fxrebasin.analyze(a, IMAGES.cuda()).random(3)
    b = model(1).cuda()
    b.load_state_dict(planted_one.permute_state_dict(a.state_dict()))
    graph = fxrebasin.transform(b, ref=a, example_inputs=IMAGES.cuda())
    state = graph.state_dict()
    assert all(torch.equal(state[name], t) for name, t in a.state_dict().items())
    assert fxrebasin.verify(a, b, example_inputs=IMAGES.cuda()).passed


@needs_cuda
def test_on_a_gpu_matrices_come_over_in_one_piece_and_sums_are_exact() -> None:
    x = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(to_host(x.cuda()), x.numpy())
    assert inner(x.cuda(), x.cuda()) == pytest.approx(float(x.double() @ x.double()), rel=1e-12)
    gains, order = planted(300, 0.1)
    assert np.array_equal(clear_order(gains.cuda()), order)


@needs_cuda
def test_on_a_gpu_statistics_are_recalibrated() -> None:
    a = model(1)
    expected = fxrebasin.recalibrate(a, [IMAGES]).state_dict()
    found = fxrebasin.recalibrate(a.cuda(), [IMAGES.cuda()]).state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].cpu(), tensor, rtol=1e-3, atol=1e-4)
