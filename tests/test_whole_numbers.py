"""Indices and masks of booleans in merges: they have no mean, and are those of one model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination, Formula, combine
from tests.support.commands import invoke, load
from tests.support.small_nets import draw, unsettled

NETS = """
import torch
from torch import nn

class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 9), nn.Linear(9, 3)
        self.register_buffer("order", torch.arange(5))
        self.register_buffer("alive", torch.ones(3, 9, dtype=torch.bool))

    def forward(self, x):
        hidden = self.first(x[:, self.order]).relu()
        return nn.functional.linear(hidden, self.last.weight * self.alive, self.last.bias)
"""
LARGE = ("--max-memory", "1GiB")


def drawn(seed: int) -> nn.Module:
    """A network with an order of inputs and a mask that each training draws by itself."""
    names: dict[str, type[nn.Module]] = {}
    exec(compile(NETS, "drawn_nets.py", "exec"), names)
    torch.manual_seed(seed)
    model = unsettled(names["Drawn"](), seed)
    generator = torch.Generator().manual_seed(seed)
    model.order.copy_(torch.randperm(5, generator=generator))
    model.alive.copy_(torch.rand(3, 9, generator=generator) > 0.4)
    return model.eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("drawn_nets", None)
    Path("drawn_nets.py").write_text(NETS)
    for seed in range(3):
        torch.save(drawn(seed).state_dict(), f"{seed}.pt")
    yield tmp_path
    sys.modules.pop("drawn_nets", None)


def check_is_that_of(seed: int, path: str) -> None:
    model, found = drawn(seed).double(), drawn(0).double()
    found.load_state_dict(load(path))
    x = draw(7, 5, seed=8).double()
    assert torch.allclose(found(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("more", [(), LARGE])
@pytest.mark.parametrize("method", ["none", "weight"])
def test_models_at_the_ends_are_those_that_were_given(method: str, more: tuple[str, ...]) -> None:
    options = ("--method", method, *more)
    invoke(
        "interpolate", "drawn_nets:Drawn", *("0.pt", "1.pt", "--t", "0,1"),
        *("--out", "at-{t}.pt", *options),
    )  # fmt: skip
    check_is_that_of(0, "at-0.pt")
    check_is_that_of(1, "at-1.pt")
    invoke(
        "merge", "drawn_nets:Drawn", *("0.pt", "1.pt", "2.pt", "--weights", "0,0,1"),
        *("--out", "m.pt", *options),
    )  # fmt: skip
    check_is_that_of(2, "m.pt")
    slerp = ("--combine", "slerp", "--t", "1")
    invoke("merge", "drawn_nets:Drawn", "0.pt", "1.pt", *slerp, "--out", "s.pt", *options)
    check_is_that_of(1, "s.pt")


@pytest.mark.parametrize(
    ("combination", "heaviest"),
    [
        (Combination(), 0),
        (Combination(weights=ByPattern((1.0, 1.0, 1.0))), 0),
        (Combination(weights=ByPattern((0.2, 0.3, 0.3))), 1),
        (Combination(weights=ByPattern((1.0, 0.0, 0.0), (("order", (0.0, 0.0, 1.0)),))), 2),
        (Combination(Formula.TASK_ARITHMETIC, weights=ByPattern((-1.0, 0.5, 0.4))), 1),
        (Combination(Formula.SLERP, t=ByPattern(0.5)), 0),
        (Combination(Formula.SLERP, t=ByPattern(0.6)), 1),
    ],
)
@pytest.mark.parametrize("buffers", [(), ("order",)])
def test_the_one_that_counts_most_gives_them(
    combination: Combination, heaviest: int, buffers: tuple[str, ...]
) -> None:
    count = 2 if combination.formula is Formula.SLERP else 3
    states = [{"order": torch.tensor([k, 7]), "w": torch.tensor([1.0 + k])} for k in range(count)]
    base = {"order": torch.tensor([9, 7]), "w": torch.tensor([0.5])}
    needed = base if combination.formula.needs_base else None
    found = combine(states, combination, needed, buffers=buffers)
    assert found["order"].tolist() == [heaviest, 7]
    kept = combine(states, combination, needed, buffers=buffers, kept=["order"])
    assert kept["order"].tolist() == [0, 7]
