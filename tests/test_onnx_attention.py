"""Attention over other axes than batch and heads, which torch's ONNX exporter does not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import fxrebasin

Layer = Callable[["Windows", Tensor, Tensor, Tensor], Tensor]


def all_windows(o: Tensor) -> Tensor:
    return o.expand(-1, 2, 3, -1, -1)


LAYERS: dict[str, Layer] = {
    "windows": lambda m, q, k, v: attend(q, k, v),
    "a mask for each": lambda m, q, k, v: attend(q, k, v, m.mask),
    "a mask for heads": lambda m, q, k, v: attend(q, k, v, m.mask[0], scale=0.3),
    "causal": lambda m, q, k, v: attend(q, k, v, is_causal=True),
    "keys of one window": lambda m, q, k, v: attend(q, k[:, :1], v[:, :1]),
    "three axes": lambda m, q, k, v: all_windows(
        attend(q[:, 0, 0], k[:, 0, 0], v[:, 0, 0], m.mask[0, 0])[:, None, None]
    ),
    "two axes": lambda m, q, k, v: all_windows(
        attend(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0])[None, None, None].expand(len(q), 2, 3, -1, -1)
    ),
}


class Windows(nn.Module):
    """Attention inside of two windows, with three heads of four."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.layer = nn.Linear(6, 36), nn.Linear(12, 5), layer
        self.mask = nn.Parameter(torch.randn(2, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 2, 4, 3, 3, 4).permute(3, 0, 1, 4, 2, 5)
        found = self.layer(self, q, k, v)
        return self.out(found.transpose(2, 3).reshape(x.shape[0], 2, 4, 12))


@pytest.mark.parametrize("name", LAYERS)
def test_files_of_attention_over_any_axes(name: str, tmp_path) -> None:
    model, x = Windows(LAYERS[name]).eval(), torch.randn(2, 2, 4, 6)
    report = fxrebasin.export_onnx(model, tmp_path / "b.onnx", x)
    assert report.passed
    assert report.max_rel < 1e-5
    order = fxrebasin.analyze(model, x).log10_order()
    assert order > 2.7
    assert fxrebasin.analyze(tmp_path / "b.onnx").log10_order() == pytest.approx(order)
