"""Models that draw random numbers in eval mode too: one function for each state of a generator."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import TraceError
from fxrebasin.running.preserve import preserve
from fxrebasin.running.randomness import OwnNumbers
from tests.support.randomise import log10_factorial, randomise

SEEDS = range(4)


class Drawing(nn.Module):
    """Hidden units meet random numbers."""

    def __init__(self, meet: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.meet = meet

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.meet(torch.relu(self.a(x))))
        return out


def part_drawn(h: Tensor) -> Tensor:
    mask = torch.ones(8, dtype=h.dtype)
    mask[2:].bernoulli_(0.5)
    return h * mask


def dropout(h: Tensor) -> Tensor:
    return F.dropout(h, 0.5, training=True)


def in_python(h: Tensor) -> Tensor:
    return h * torch.tensor([float(random.random() < 0.5) for _ in range(8)])


def in_numpy(h: Tensor) -> Tensor:
    return h * torch.from_numpy(np.random.rand(8) < 0.5)


OF_TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": dropout,
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, training=True),
    "mask": lambda h: h * (torch.rand(8) < 0.5),
    "seldom": lambda h: torch.where(torch.rand(8) < 0.05, 0.0, h),
    "bernoulli": lambda h: h * torch.empty(8, dtype=h.dtype).bernoulli_(0.5),
    "written to a part": part_drawn,
    "of probabilities": lambda h: h * torch.bernoulli(torch.full((8,), 0.5, dtype=h.dtype)),
    "whole numbers": lambda h: h * torch.randint(0, 2, (8,)),
    "order": lambda h: h[:, torch.randperm(8)],
    "place": lambda h: h + h[:, torch.randint(0, 8, (1,))],
    "native dropout of ones": lambda h: h * torch.native_dropout(torch.ones(8), 0.1, True)[0],
    "slopes": lambda h: torch.rrelu(h - 1, training=True),
    "slopes of signs": lambda h: h * torch.rrelu(-torch.ones(8), training=True).round(decimals=1),
    "waiting times": lambda h: h * (torch.empty(8).exponential_() > 2),
    "generator": lambda h: h * (torch.rand(8, generator=torch.Generator()) < 0.5),
}
OF_PYTHON = {"python": in_python, "numpy": in_numpy}


def drawing(meet: Callable[[Tensor], Tensor], seed: int = 0) -> nn.Module:
    model = Drawing(meet)
    randomise(model.double(), seed)
    return model.eval()


def run(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    with torch.no_grad():
        found: Tensor = model(x)
    return found


@pytest.mark.parametrize("name", [*OF_TORCH, *OF_PYTHON])
@pytest.mark.parametrize("symmetry", ["permutation", "all"])
def test_no_seed_sees_a_random_element(name: str, symmetry: str, inputs: Tensor) -> None:
    """What meets numbers that are alike once stays: they are not alike the next time."""
    model = drawing({**OF_TORCH, **OF_PYTHON}[name])
    random.seed(0)
    np.random.seed(0)
    found = fxrebasin.analyze(model, inputs, symmetry=symmetry)
    for element in range(2):
        moved = drawing({**OF_TORCH, **OF_PYTHON}[name])
        moved.load_state_dict(found.random(element).permute_state_dict(model.state_dict()))
        for seed in SEEDS:
            torch.testing.assert_close(
                run(moved, inputs, seed), run(model, inputs, seed), rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("inplace", [False, True])
def test_slopes_that_are_not_drawn_pin_nothing(inplace: bool, inputs: Tensor) -> None:
    a, b = (drawing(nn.RReLU(inplace=inplace), seed) for seed in (1, 2))
    symmetry = fxrebasin.analyze(b, (inputs,))
    assert symmetry.log10_order() == pytest.approx(log10_factorial(8))
    result = fxrebasin.transform(b, ref=a, example_inputs=(inputs,))
    other = inputs.roll(1, 0)[:3] * 2
    assert torch.allclose(result(other), b(other), rtol=1e-12, atol=1e-12)
    assert not torch.equal(result.get_parameter("a.weight"), b.get_parameter("a.weight"))


@pytest.mark.parametrize("name", [*OF_TORCH, *OF_PYTHON])
@pytest.mark.parametrize("verify", [True, "exact"])
def test_no_graph_holds_numbers_that_were_drawn(
    name: str, verify: bool | str, inputs: Tensor
) -> None:
    meet = {**OF_TORCH, **OF_PYTHON}[name]
    model = drawing(meet)
    random.seed(0)
    np.random.seed(0)
    try:
        graph = fxrebasin.transform(model, drawing(meet, 1), inputs, verify=verify)
    except TraceError:
        return
    for seed in SEEDS:
        torch.testing.assert_close(
            run(graph, inputs, seed), run(model, inputs, seed), rtol=1e-9, atol=1e-9
        )


def test_one_number_for_all_units_pins_none(inputs: Tensor) -> None:
    """Neither does one for each row, nor one that nothing reads."""
    ways = (
        lambda h: h * torch.rand(()),
        lambda h: h * torch.rand(h.shape[0], 1).round(),
        lambda h: h if random.random() < 2 else -h,
    )
    for way in ways:
        found = fxrebasin.analyze(drawing(way), inputs)
        assert found.log10_order() == pytest.approx(log10_factorial(8))


def test_the_reason_and_the_notes_say_what_was_drawn(inputs: Tensor) -> None:
    found = fxrebasin.analyze(drawing(dropout), inputs)
    assert "random numbers of aten.bernoulli_" in found.pins["a.weight", 0]
    assert not found.unknown_operators
    noted = fxrebasin.analyze(drawing(in_numpy), inputs).notes
    assert any("draws random numbers in Python" in note for note in noted)


def test_numbers_of_python_that_nothing_reads_are_no_reason_to_refuse(inputs: Tensor) -> None:
    """As in models that draw whether to leave out a layer, and leave out none in eval mode."""

    def way(h: Tensor) -> Tensor:
        drawn = random.uniform(0, 1)
        return -h if drawn > 2 else h

    graph = fxrebasin.transform(drawing(way), drawing(way, 1), inputs)
    assert graph.meta["fxrebasin"].equivalence.passed


def test_only_what_draws_without_a_generator_begins_those_of_the_process_anew() -> None:
    def attention(drop: float) -> Tensor:
        q = torch.arange(24.0).reshape(1, 2, 3, 4)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=drop)

    ones = torch.ones(8)
    for draw, seeds in (
        (lambda: attention(0.0), False),
        (lambda: torch.native_dropout(ones, 0.5, False)[0], False),
        (lambda: torch.native_dropout(ones, 0.5, True)[0], True),
    ):
        before, found = torch.get_rng_state(), []
        for _ in range(2):
            torch.rand(3)
            numbers = OwnNumbers(5)
            with preserve(nn.Identity(), numbers):
                found.append(draw())
        torch.set_rng_state(before)
        assert torch.equal(*found)
        assert numbers.drew_others is seeds


def test_a_graph_that_holds_a_generator_is_none(inputs: Tensor) -> None:
    def way(h: Tensor) -> Tensor:
        if isinstance(h, torch.fx.Proxy):
            raise TypeError("not for proxies")
        drawn = torch.rand(1, generator=torch.Generator().manual_seed(0), dtype=h.dtype)
        return h + torch.linalg.qr(drawn[None])[1]

    with pytest.raises(TraceError, match=r"a graph that holds a .*, which changes from call to"):
        fxrebasin.transform(drawing(way), drawing(way, 1), inputs)


@pytest.fixture
def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)
