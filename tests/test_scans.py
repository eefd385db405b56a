"""What depends on the order along an axis, over units that a table turns from row to row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin

CIRCLE = torch.tensor([[0, 3, 2, 1], [1, 0, 3, 2], [2, 1, 0, 3], [3, 2, 1, 0]])
READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "largest": lambda v: v.cumsum(1).amax(0),
    "largest of all": lambda v: torch.stack([v, v.cumsum(1)]).amax((0, 1)),
    "beside the units": lambda v: torch.cat([v, v.cumsum(1)]).square().sum(0),
    "products": lambda v: v.cumprod(1).amax(0),
    "largest so far": lambda v: v.cummax(1)[0].square().sum(0),
    "convolution": lambda v: F.conv1d(v[:, None], torch.tensor([[[1.0, 2.0]]]).to(v)).amax((0, 2)),
    "windows": lambda v: F.avg_pool1d(v[:, None], 2, 1).amax((0, 2)),
    "neighbours": lambda v: v.diff(dim=1).amax((0, 1)),
    "spectrum": lambda v: torch.fft.rfft(v, dim=1).abs().amax(0),
    "round the circle": lambda v: (v * v.roll(1, 1)).amax((0, 1)),
    "from both ends": lambda v: (v * v.flip(1)).amax((0, 1)),
    "no scan": lambda v: torch.cat([v, v.square()]).amax(0),
}
SIZES = {"from both ends": [2, 2], "no scan": [4]}


class Circle(nn.Module):
    """Reads units round a circle, from each of them."""

    def __init__(self, reading: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.units = nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(0)))
        self._reading = reading

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() * self._reading(self.units[CIRCLE])


@pytest.mark.parametrize("name", READINGS)
def test_what_stands_before_a_unit_counts(name: str) -> None:
    model, x = Circle(READINGS[name]).double(), torch.ones(2, dtype=torch.float64)
    symmetry = fxrebasin.analyze(model, x)
    assert [c.size for c in symmetry.classes] == SIZES.get(name, [])
    before, state = model(x), dict(model.state_dict())
    for seed in range(4):
        moved = Circle(READINGS[name]).double()
        moved.load_state_dict(symmetry.random(seed).permute_state_dict(state))
        torch.testing.assert_close(moved(x), before, rtol=1e-10, atol=1e-12)
