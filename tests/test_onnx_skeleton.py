"""Files that different exporters wrote: which of their tensors go together."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.matching import paired
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, mlp, model, planted
from tests.support.randomise import randomise


class Convolutions(nn.Module):
    """Nodes that one exporter writes otherwise: an average over the image, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.side = nn.Conv2d(6, 6, 1, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool2d(F.silu(self.side(x)) + x, 1).flatten(1))


class Attention(nn.Module):
    """Weights that one exporter transposes, and sizes that it works out in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        y = self.norm(x)
        heads = (
            layer(y).view(batch, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(batch, length, 8)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(x)))


NETS = [(Convolutions, (2, 3, 8, 8)), (Attention, (2, 5, 8))]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("build", "shape"), NETS)
def test_exporters_of_a_and_b_may_differ(
    build: type[nn.Module], shape: tuple[int, ...], turned: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, inputs = randomise(build()).eval(), (torch.randn(shape),)
    plain = tmp_path / "plain.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dynamo, path in ((turned, tmp_path / "b.onnx"), (not turned, plain)):
            torch.onnx.export(net, inputs, path, dynamo=dynamo, verbose=False, external_data=False)
    found = planted(plain, tmp_path / "a.onnx")
    report = fxrebasin.onnx_transform(
        tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx"
    )
    assert report.log10_order == pytest.approx(found.symmetry.log10_order())
    assert report.distance_before > 1
    assert report.distance_after == 0
    pair = paired(tmp_path / "out.onnx", tmp_path / "a.onnx")
    assert {*pair.own.state} <= pair.tensors.keys()
    for name in pair.own.state:
        other = pair.tensors[name].of(pair.other.parsed.tensors)
        assert torch.equal(pair.own.parsed.tensors[name], other), name
    fxrebasin.onnx_merge([tmp_path / "out.onnx", tmp_path / "a.onnx"], tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Add(d, b2)", "Add(b2, d)"),
        ("c = Relu(b)", "r = Relu(b) c = Identity(r)"),
        ("MatMul(x, w1)", "Gemm<alpha = 1.0>(x, w1)"),
        ("c = Relu(b)", "s = Shape(b) z = Reshape(b, s) c = Relu(z)"),
        ("c = Relu(b)", "r = Relu(b) c = Relu(r)"),
    ],
)
def test_spelling_does_not_matter(before: str, after: str, tmp_path: Path) -> None:
    text = MLP.replace("MatMul(x, w1)", "Gemm(x, w1)")
    other = model(text.replace(before, after), MLP_WEIGHTS, 1)
    report = fxrebasin.onnx_transform(model(text, MLP_WEIGHTS), other, tmp_path / "one")
    plain = fxrebasin.onnx_transform(
        model(text, MLP_WEIGHTS), model(text, MLP_WEIGHTS, 1), tmp_path / "two"
    )
    assert report.distance_after == plain.distance_after
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("perm", ["", "<perm = [1, 0]>"])
def test_a_weight_that_is_stored_transposed_is_turned(perm: str, tmp_path: Path) -> None:
    text = MLP.replace("MatMul(x, w1)", "MatMul(x, t)").replace(
        "{", f"{{ t = Transpose{perm}(w1) ", 1
    )
    a = mlp(1)
    turned = model(text, {**MLP_WEIGHTS, "w1": (5, 3)}, 1)
    stored = onnx.numpy_helper.to_array(a.graph.initializer[0])
    turned.graph.initializer[0].raw_data = stored.T.copy().tobytes()
    for at in (1, 2, 3):
        turned.graph.initializer[at].CopyFrom(a.graph.initializer[at])
    one = fxrebasin.match(mlp(), ref=turned)
    assert one.digest() == fxrebasin.match(mlp(), ref=a).digest()
    back = fxrebasin.onnx_transform(turned, ref=mlp(), out=tmp_path / "turned.onnx")
    assert back.log10_order == pytest.approx(2.0792, abs=1e-3)
    assert read(tmp_path / "turned.onnx").parsed.tensors["w1"].shape == (5, 3)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c = Relu(b)", "c = Relu(b) unused = Relu(c)  "),
    ],
)
def test_what_nothing_comes_of_does_not_matter(before: str, after: str) -> None:
    pair = paired(mlp(), model(MLP.replace(before, after), MLP_WEIGHTS, 1))
    assert {name: partner.name for name, partner in pair.tensors.items()} == {
        name: name for name in MLP_WEIGHTS
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("c = Relu(b)", "c = LeakyRelu<alpha = 0.2>(b)"),
        ("c = Relu(b)", "r = Relu(b) c = Tanh(r)"),
        ("c = Relu(b)", "r = Shape(b) c = Add(b, b)"),
        ("d = MatMul(c, w2)", "d = Gemm<alpha = 2.0>(c, w2)"),
        ("Add(a, b1)", "Mul(a, b1)"),
        ("d = MatMul(c, w2)", "d = MatMul(b, w2)"),
        ("y = Add(d, b2)", "y = Identity(d)"),
    ],
)
def test_what_is_computed_matters(before: str, after: str) -> None:
    with pytest.raises(ArchitectureMismatchError):
        paired(mlp(), model(MLP.replace(before, after), MLP_WEIGHTS, 1))


BODIES = """ g (float[n,3] x) => (float[n,2] y) {
    s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)  a = MatMul(x, w1)
    z = If(c) <then_branch = one () => (float[n,5] t) { p = Add(a, b1)  t = Relu(p) },
               else_branch = two () => (float[n,5] t) { q = MatMul(x, w3)  t = Tanh(q) }>
    r = Loop(three, yes, z) <body = turn (int64 i, bool k, float[n,5] u) => (bool l, float[n,5] v)
                             { l = Identity(k)  m = MatMul(u, w4)  v = Add(m, b1) }>
    d = MatMul(r, w2)  y = Add(d, b2) }"""
IN_BODIES = {
    **{"w1": (3, 5), "b1": (5,), "w3": (3, 5), "w4": (5, 5), "w2": (5, 2), "b2": (2,)},
    **{"zero": np.float32(0), "three": np.int64(3), "yes": np.bool_(True)},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("p = Add(a, b1)", "o = Identity(a) p = Add(b1, o)"),
        ("q = MatMul(x, w3)  t = Tanh(q)", "xx = Identity(x) q = Gemm(xx, w3)  t = Tanh(q)"),
        ("m = MatMul(u, w4)  v = Add(m, b1)", "v = Gemm(u, w4, b1)"),
    ],
)
def test_bodies_are_followed(before: str, after: str, tmp_path: Path) -> None:
    a = model(BODIES.replace(before, after), IN_BODIES, 1)
    assert a != model(BODIES, IN_BODIES, 1)
    pair = paired(model(BODIES, IN_BODIES), a)
    assert {name: p.name for name, p in pair.tensors.items() if name in IN_BODIES} == {
        name: name for name in pair.own.state
    }
    report = fxrebasin.onnx_transform(model(BODIES, IN_BODIES), a, tmp_path / "one")
    plain = fxrebasin.onnx_transform(
        model(BODIES, IN_BODIES), model(BODIES, IN_BODIES, 1), tmp_path / "two"
    )
    assert report.distance_after == plain.distance_after < plain.distance_before
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("t = Relu(p)", "o = Identity(p) t = Elu(o)"),
        ("c = Greater(s, zero)", "o = Identity(s) c = Less(o, zero)"),
        ("q = MatMul(x, w3)", "o = Identity(x) r = Relu(o) q = MatMul(r, w3)"),
        ("m = MatMul(u, w4)", "o = Identity(z) m = MatMul(o, w4)"),
    ],
)
def test_what_bodies_compute_matters(before: str, after: str) -> None:
    other = BODIES.replace(before, after)
    assert other != BODIES
    with pytest.raises(ArchitectureMismatchError, match="in the reference"):
        paired(model(BODIES, IN_BODIES), model(other, IN_BODIES, 1))


@pytest.mark.parametrize("turned", [False, True])
def test_one_node_for_a_layer_or_two(turned: bool, tmp_path: Path) -> None:
    """Products and sums, or both at once, with a weight that may be stored transposed."""
    shapes = {**MLP_WEIGHTS, "w1": (5, 3)} if turned else MLP_WEIGHTS
    text = MLP.replace("a = MatMul(x, w1)  b = Add(a, b1)", "b = Gemm(x, w1, b1)")
    text = text.replace("Gemm", "Gemm<transB = 1>") if turned else text
    a, other = mlp(1), model(text, shapes, 1)
    for own, theirs in zip(other.graph.initializer, a.graph.initializer, strict=True):
        array = onnx.numpy_helper.to_array(theirs)
        array = array.T.copy() if list(own.dims) != list(array.shape) else array
        own.CopyFrom(onnx.numpy_helper.from_array(array, own.name))
    assert fxrebasin.match(mlp(), ref=other).digest() == fxrebasin.match(mlp(), ref=a).digest()
    back = fxrebasin.onnx_transform(other, ref=mlp(), out=tmp_path / "out.onnx")
    assert back.distance_after < back.distance_before
