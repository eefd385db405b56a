"""Weights that a model reads by other ways than their names are those weights in graphs, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from tests.support.randomise import randomise


class Base(nn.Module):
    """Two layers of units, the second of which is read by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x).relu()).relu())


class Closure(Base):
    def __init__(self) -> None:
        super().__init__()
        weight = self.middle.weight
        self.read = lambda h: h @ weight.T

    def between(self, h: Tensor) -> Tensor:
        return self.read(h)


class Turned(Base):
    def __init__(self) -> None:
        super().__init__()
        self.turned = self.middle.weight.detach().t()

    def between(self, h: Tensor) -> Tensor:
        return h @ self.turned


class Alias(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bias = self.middle.bias.data

    def between(self, h: Tensor) -> Tensor:
        return F.linear(h, self.middle.weight, self.bias)


class Shaped(Base):
    def __init__(self) -> None:
        super().__init__()
        self.column = self.middle.bias.data[:, None]

    def between(self, h: Tensor) -> Tensor:
        return self.middle(h) * self.column[:, 0]


class Part(Base):
    def __init__(self) -> None:
        super().__init__()
        self.part = self.middle.weight.data[2:5, ::2]

    def between(self, h: Tensor) -> Tensor:
        return F.pad(h[:, ::2] @ self.part.t(), (2, 3))


class Functions(Base):
    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Callable[[Tensor], Tensor]] = [
            lambda h: self.middle(h),
            lambda h: h * self.middle.bias,
        ]

    def between(self, h: Tensor) -> Tensor:
        for function in self.functions:
            h = function(h).relu()
        return h


class Listed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.middle.weight, self.middle.bias]

    def between(self, h: Tensor) -> Tensor:
        return F.linear(h, *self.kept)


WAYS = (Closure, Turned, Alias, Shaped, Part, Functions, Listed)
PINNED = (Turned, Part)  # of views that were made before, units are not followed


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("verify", [True, "exact"])
def test_graphs_read_the_permuted_weights(kind: type[Base], verify: bool | str) -> None:
    a, b = (randomise(kind(), seed).eval() for seed in (1, 2))
    x, other = torch.randn(3, 4), torch.randn(5, 4)
    result = fxrebasin.transform(b, a, x, verify=verify)
    assert bool(result.meta["fxrebasin"].certificate.units_moved) is (kind not in PINNED)
    torch.testing.assert_close(result(other), b(other), rtol=1e-4, atol=1e-5)
    assert result.state_dict().keys() == b.state_dict().keys()
    loaded = kind().eval()
    loaded.load_state_dict(result.state_dict())
    torch.testing.assert_close(loaded(other), b(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", WAYS)
def test_files_read_the_permuted_weights(kind: type[Base], tmp_path: Path) -> None:
    a, b = (randomise(kind(), seed).eval() for seed in (1, 2))
    x = torch.randn(3, 4)
    result = fxrebasin.transform(b, a, x)
    assert fxrebasin.export_onnx(result, tmp_path / "m.onnx", x).passed
    assert fxrebasin.verify(b, tmp_path / "m.onnx", x).passed
