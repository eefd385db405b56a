"""How close two models are does not depend on how much of a table is permuted at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.passes.match import closeness as module
from fxrebasin.passes.match.closeness import closeness
from fxrebasin.permutation import Permutation
from tests.support.randomise import randomise


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.table(ids).mean(1)).relu())


@pytest.mark.parametrize("bytes_at_once", [1, 100, 600])
def test_rows_at_a_time(bytes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    a, b = randomise(Texts().eval()), randomise(Texts().eval())
    permutation = fxrebasin.analyze(b, torch.tensor([[1, 2, 3]])).random(1)
    states = dict(a.state_dict()), dict(b.state_dict())
    assert not torch.equal(
        permutation.permute_state_dict(states[1])["table.weight"], states[1]["table.weight"]
    )
    whole = closeness(list(states[0]), *states, permutation)
    most: list[int] = []
    permute = Permutation.permute_tensor

    def noted(self: Permutation, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "table.weight":
            most.append(tensor.nbytes)
        return permute(self, name, tensor)

    monkeypatch.setattr(Permutation, "permute_tensor", noted)
    monkeypatch.setattr(module, "_AT_ONCE", bytes_at_once)
    parts = closeness(list(states[0]), *states, permutation)
    assert (parts.objective, parts.distance) == pytest.approx((whole.objective, whole.distance))
    assert sum(most) == states[1]["table.weight"].nbytes
    assert max(most) <= max(bytes_at_once, 6 * 4)
