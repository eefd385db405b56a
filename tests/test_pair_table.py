"""Classes within classes whose tensors have nothing to say about some pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import randomise


class RowsByData(nn.Module):
    """Attention of two heads over rows that are picked by data, summed up with all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.qkv = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(12, 2))
        self.kept, self.last = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        picked = self.rows[(x.repeat([1, 3]).reshape(-1, 3) > 0).long()]
        parts = F.linear(picked, self.qkv).split(4, -1)
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in parts)
        mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return torch.tensordot(mixed, self.kept, 2) @ self.last


def test_blocks_without_elements_are_no_error() -> None:
    torch.manual_seed(0)
    model, x = randomise(RowsByData().double().eval()), torch.randn(3, 2, dtype=torch.float64)
    state = dict(model.state_dict())
    planted = fxrebasin.analyze(model, x).random(1).permute_state_dict(state)
    other = RowsByData().double().eval()
    other.load_state_dict(planted)
    found = fxrebasin.match(other, ref=model, example_inputs=x).permute_state_dict(planted)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
