"""The places that a symmetry names are those of the model, whatever other threads run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.running.module_calls import ModuleCalls
from fxrebasin.symmetry import Symmetry
from tests.support.randomise import randomise


class Waiting(nn.Module):
    """Runs until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.started.set()
        assert self.go_on.wait(60)
        return x


@contextmanager
def beside_another() -> Iterator[None]:
    """A block in the middle of which a module of another thread starts to run."""
    other = Waiting()
    thread = threading.Thread(target=other, args=(torch.ones(1),))
    thread.start()
    assert other.started.wait(60)
    try:
        yield
    finally:
        other.go_on.set()
        thread.join()


class Net(nn.Module):
    """A hidden layer with a norm; may run beside another thread, which starts between layers."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.alone = alone

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.alone:
            return self.last(self.norm(x).relu())
        with beside_another():
            x = self.last(self.norm(x).relu())
        return x


def told(symmetry: Symmetry) -> list[Any]:
    edges = [
        (a, b, data["operator"], data["node"]) for a, b, data in symmetry.graph.edges(data=True)
    ]
    return [edges, [reason.partition(" at ")[0] for _, reason in sorted(symmetry.pins.items())]]


@pytest.mark.parametrize("kind", ["permutation", "all"])
def test_other_threads_give_no_node_its_name(kind: Any) -> None:
    alone, beside = (
        fxrebasin.analyze(randomise(Net(alone)), torch.ones(2, 4), symmetry=kind)
        for alone in (True, False)
    )
    assert told(beside) == told(alone)
    assert beside.identity() == alone.identity()


def test_calls_of_another_thread_do_not_end_those_of_this_one() -> None:
    net = Net(alone=True)
    calls = ModuleCalls(net)
    seen = []
    net.norm.register_forward_pre_hook(lambda *_: seen.append(calls.innermost))
    with calls.watch(), torch.no_grad():
        with beside_another():
            assert calls.innermost == ""
            net(torch.ones(2, 4))
        assert calls.innermost == ""
    assert seen == ["norm"]
