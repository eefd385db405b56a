"""Models that keep values made of their weights from run to run, and have run before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.running.own_structure import own_structure

X, OTHER = (torch.randn(n, 4, 6, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
PLACES = torch.randint(0, 7, (4, 4), generator=torch.Generator().manual_seed(0))


class Keeping(nn.Module):
    """Attention with a bias for each offset, gathered once for each device (as in timm)."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.qkv, self.out, self.kind = nn.Linear(6, 36), nn.Linear(12, 5), kind
        self.biases = nn.Parameter(torch.randn(3, 7))
        self.kept: dict[Any, Tensor] = {}
        self.last: Tensor | None = None
        self.made_of: list[Any] = [None]
        self.eval()

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.kept, self.last = {}, None
        return super().train(mode)

    def _bias(self, x: Tensor) -> Tensor:
        keys = {"name": str(x.device), "several": (x.device, x.dtype), "shape": x.shape[1:]}
        if self.kind in keys:
            key = keys[self.kind]
            if key not in self.kept:
                self.kept[key] = self.biases[:, PLACES].detach()
            return self.kept[key]
        moved = self.kind == "device" and self.last is not None and self.last.device != x.device
        other = self.kind == "weights" and self.made_of[0] is not self._parameters["biases"]
        if self.last is None or moved or other:
            self.last, self.made_of = self.biases[:, PLACES].detach(), [self._parameters["biases"]]
        return self.last

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 4, 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) + self._bias(x)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape[0], 4, 12))


def pair(kind: str) -> tuple[Keeping, Keeping, Tensor]:
    """A reference, a model that has run, and what a new one with its weights computes."""
    a, b = Keeping(kind, 0), Keeping(kind, 1)
    a(X), b(X)
    return a, b, copy.deepcopy(b).train().eval()(OTHER)


@pytest.mark.parametrize("verify", [True, "exact"])
@pytest.mark.parametrize("kind", ["name", "several", "shape", "device", "weights", "always"])
def test_a_graph_of_a_model_that_has_run_computes_what_it_computes(kind: str, verify: Any) -> None:
    a, b, wanted = pair(kind)
    kept, last = dict(b.kept), b.last
    graph = fxrebasin.transform(b, a, X, verify=verify)
    torch.testing.assert_close(graph(OTHER), wanted)
    fresh = Keeping(kind, 2)
    fresh.load_state_dict(graph.state_dict())
    torch.testing.assert_close(fresh(OTHER), wanted)
    assert all(map(torch.equal, b.kept.values(), kept.values()))
    assert list(b.kept) == list(kept)
    assert b.last is last


@pytest.mark.parametrize("kind", ["name", "several"])
def test_heads_move_as_in_a_model_that_has_not_run(kind: str) -> None:
    _, b, _ = pair(kind)
    before = fxrebasin.analyze(Keeping(kind, 1), X)
    assert "biases" in before.layout
    after = fxrebasin.analyze(b, X)
    assert after.layout.keys() == before.layout.keys()
    assert after.log10_order() == before.log10_order() > 9
    graph = fxrebasin.apply(b, before.random(0), X)
    assert not torch.equal(graph.get_parameter("biases"), b.biases)


def test_tables_that_a_module_was_given_stay() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = {"cpu": torch.ones(3)}
            self.register_parameter("meta", nn.Parameter(torch.ones(2)))

    model = Tables()
    own = own_structure(model)
    assert list(own.tables) == ["cpu"]
    assert own.meta is model.meta
