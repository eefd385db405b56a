"""Files in which one node stands for what are many in another: which tensors go together."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.matching import paired
from tests.support.onnx_graphs import model, planted
from tests.support.randomise import randomise


class Block(nn.Module):
    """Attention and two layers, each after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.second = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x.shape
        y = self.norm(x)
        heads = (
            layer(y).view(rows, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(rows, length, 8)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.second(x))))


class Text(nn.Module):
    """A table of tokens, places, a block, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(20, 8), nn.Parameter(torch.zeros(1, 5, 8))
        self.block, self.last = Block(), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.block(self.table(ids) + self.places)
        return self.head(self.last(x))


class Image(nn.Module):
    """Norms and activations that opsets and exporters have as one node or as several."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.group = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.side = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.each, self.slope = nn.InstanceNorm2d(8, affine=True), nn.PReLU(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.group(self.first(x)))
        x = x + F.silu(self.each(self.side(x)))
        return self.head(F.mish(F.hardswish(x)).mean((2, 3)))


NETS = {
    "text": (Text, lambda: torch.randint(0, 20, (2, 5))),
    "image": (Image, lambda: torch.randn(2, 3, 8, 8)),
}


def exported(net: nn.Module, inputs: torch.Tensor, form: str, path: Path) -> Path:
    """A file of one exporter, or what onnxruntime's optimiser makes of it.

    Args:
        net: the model.
        inputs: of it.
        form: of the exporter and opset; "fused" at its end for the optimiser.
        path: where to write.
    """
    dynamo = form.startswith("dynamo")
    opset = int("".join(filter(str.isdigit, form)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (inputs,), path, dynamo=dynamo, opset_version=opset, verbose=False,
            external_data=False, optimize=not form.startswith("dynamo raw"),
        )  # fmt: skip
    if not form.endswith("fused"):
        return path
    options, level = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.log_severity_level, options.graph_optimization_level = 4, level.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_suffix(".fused.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Path(options.optimized_model_filepath)


@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("text", "script 14", "dynamo 23"),
        pytest.param("text", "dynamo raw 18", "script 14 fused", marks=pytest.mark.slow),
        pytest.param("text", "dynamo 23", "script 17 fused", marks=pytest.mark.slow),
        pytest.param("text", "script 17 fused", "script 14", marks=pytest.mark.slow),
        ("image", "script 14", "dynamo 23"),
        pytest.param("image", "dynamo 23", "script 14 fused", marks=pytest.mark.slow),
        pytest.param("image", "dynamo raw 18", "script 17", marks=pytest.mark.slow),
    ],
)
def test_one_node_or_many(name: str, one: str, two: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, draw = NETS[name]
    net, inputs = randomise(build()).eval(), draw()
    mine = exported(net, inputs, one, tmp_path / "b.onnx")
    theirs = exported(net, inputs, two, tmp_path / "plain.onnx")
    kinds = [{node.op_type for node in onnx.load(path).graph.node} for path in (mine, theirs)]
    assert kinds[0] ^ kinds[1]
    found = planted(theirs, tmp_path / "a.onnx")
    out = tmp_path / "out.onnx"
    report = fxrebasin.onnx_transform(mine, ref=tmp_path / "a.onnx", out=out)
    assert report.log10_order == pytest.approx(found.symmetry.log10_order())
    assert report.distance_before > 1
    assert report.distance_after == 0
    pair = paired(out, tmp_path / "a.onnx")
    assert {*pair.own.state} <= pair.tensors.keys()
    for tensor in pair.own.state:
        other = pair.tensors[tensor].of(pair.other.parsed.tensors)
        assert torch.equal(pair.own.parsed.tensors[tensor], other), tensor


PACKED = """ g (float[n,5,6] x) => (float[n,5,4] y) {
    a = com.microsoft.Attention<num_heads = 2>(x, w, b)
    s = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>(a, x, gamma, beta)
    u = MatMul(s, up)  g = com.microsoft.BiasGelu(u, upb)  y = MatMul(g, down) }"""
SEPARATE = """ g (float[n,5,6] x) => (float[n,5,4] y) {
    q0 = MatMul(x, wq)  q1 = Add(bq, q0)  q2 = Reshape(q1, cut)  q = Transpose<perm = [0,2,1,3]>(q2)
    x2 = Reshape(x, flat)  k0 = Gemm<transB = 1>(x2, wk, bk)  k1 = Reshape(k0, back)
    k2 = Reshape(k1, cut)  k = Transpose<perm = [0,2,3,1]>(k2)
    v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, cut)  v = Transpose<perm = [0,2,1,3]>(v2)
    p = MatMul(q, k)  r = Div(p, root)  t = Softmax<axis = -1>(r)  m = MatMul(t, v)
    m1 = Transpose<perm = [0,2,1,3]>(m)  m2 = Reshape(m1, back)
    sum = Add(x, m2)  mean = ReduceMean<axes = [-1]>(sum)  d = Sub(sum, mean)  d2 = Mul(d, d)
    var = ReduceMean<axes = [-1]>(d2)  e = Add(var, eps)  f = Sqrt(e)  n0 = Div(d, f)
    n1 = Mul(gamma, n0)  s = Add(n1, beta)
    u = MatMul(s, up)  u1 = Add(u, upb)
    h0 = Mul(u1, half)  h1 = Mul(u1, rsqrt)  h2 = Erf(h1)  h3 = Add(h2, one)  h = Mul(h0, h3)
    y = MatMul(h, down) }"""
SHARED = {"gamma": (6,), "beta": (6,), "up": (6, 7), "upb": (7,), "down": (7, 4)}
PLAIN = {
    **{"cut": np.array([0, 5, 2, 3]), "flat": np.array([-1, 6]), "back": np.array([-1, 5, 6])},
    **{"root": np.float32(3**0.5), "eps": np.float32(1e-5), "one": np.float32(1)},
    **{"half": np.float32(0.5), "rsqrt": np.float32(0.5**0.5)},
}


def packed(seed: int) -> onnx.ModelProto:
    return model(PACKED, {"w": (6, 18), "b": (18,), **SHARED}, seed)


def separate(like: onnx.ModelProto, text: str = SEPARATE) -> onnx.ModelProto:
    """The same function with a tensor for each of queries, keys and values."""
    held = {item.name: onnx.numpy_helper.to_array(item) for item in like.graph.initializer}
    parts = {f"w{k}": held["w"][:, 6 * at : 6 * at + 6] for at, k in enumerate("qkv")}
    parts |= {f"b{k}": held["b"][6 * at : 6 * at + 6] for at, k in enumerate("qkv")}
    parts["wk"] = np.ascontiguousarray(parts["wk"].T)
    rest = {name: held[name] for name in SHARED}
    return model(text, {**PLAIN, **parts, **rest})


@pytest.mark.parametrize("turned", [False, True])
def test_queries_keys_and_values_in_one_tensor_or_three(turned: bool, tmp_path: Path) -> None:
    b, a = packed(0), packed(1)
    one, two = (separate(b), a) if turned else (b, separate(a))
    report = fxrebasin.onnx_transform(one, ref=two, out=tmp_path / "out.onnx")
    plain = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "plain.onnx")
    assert report.log10_order == pytest.approx(plain.log10_order)
    assert report.distance_after == pytest.approx(plain.distance_after)
    assert report.distance_after < report.distance_before
    held = [
        {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
        for path in (tmp_path / "out.onnx", tmp_path / "plain.onnx")
    ]
    for name in ("up", "upb", "down"):
        assert np.array_equal(held[0][name], held[1][name]), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h2 = Erf(h1)", "h2 = Tanh(h1)"),
        ("var, eps", "var, one"),
        ("r = Div(p, root)", "r = Identity(p)"),
        ("sum = Add(x, m2)", "sum = Add(m2, m2)"),
        ("y = MatMul(h, down)", "y = MatMul(u1, down)"),
        ("s = Add(n1, beta)", "s = Add(n1, n0)"),
    ],
)
def test_what_many_nodes_compute_matters(before: str, after: str) -> None:
    assert before in SEPARATE
    with pytest.raises(ArchitectureMismatchError):
        paired(packed(0), separate(packed(1), SEPARATE.replace(before, after)))


DENSE = """ g (float[n,5,6] x) => (float[n,5,3] y) {
    a = MatMul(x, w1)  b = Add(a, b1)  r = Tanh(b)  c = MatMul(r, w2)  d = Add(c, b2)
    e = Add(d, x)  z = Relu(e)  y = MatMul(z, w3) }"""
BY_ONES = """ g (float[n,5,6] x) => (float[n,5,3] y) {
    t = Transpose<perm = [0,2,1]>(x)  b = Conv(t, w1, b1)  r = Tanh(b)  d = Conv(r, w2, b2)
    e = Add(t, d)  z = Relu(e)  q = Conv(z, w3)  y = Transpose<perm = [0,2,1]>(q) }"""
BY_IMAGES = """ g (float[n,5,6] x) => (float[n,5,3] y) {
    u = Unsqueeze(x, two)  t = Transpose<perm = [0,3,2,1]>(u)  b = Conv(t, w1, b1)  r = Tanh(b)
    d = Conv(r, w2, b2)  e = Add(t, d)  z = Relu(e)  q = Conv(z, w3)
    q1 = Transpose<perm = [0,3,2,1]>(q)  y = Squeeze(q1, two) }"""


def layers(text: str, seed: int) -> onnx.ModelProto:
    """Dense layers as products, or as convolutions over single places."""
    shapes = {"w1": (6, 9), "b1": (9,), "w2": (9, 6), "b2": (6,), "w3": (6, 3)}
    dense = model(DENSE, shapes, seed)
    if text is DENSE:
        return dense
    places = (1,) * (1 if text is BY_ONES else 2)
    held = {item.name: onnx.numpy_helper.to_array(item) for item in dense.graph.initializer}
    held = {n: a.T.reshape(*a.T.shape, *places) if a.ndim == 2 else a for n, a in held.items()}
    return model(text, held if text is BY_ONES else {**held, "two": np.array([2])})


@pytest.mark.parametrize(
    ("one", "two"), [(DENSE, BY_ONES), (BY_IMAGES, DENSE), (BY_ONES, BY_IMAGES)]
)
def test_dense_layers_may_be_convolutions(one: str, two: str, tmp_path: Path) -> None:
    report = fxrebasin.onnx_transform(layers(one, 0), ref=layers(two, 1), out=tmp_path / "out")
    plain = fxrebasin.onnx_transform(layers(one, 0), ref=layers(one, 1), out=tmp_path / "plain")
    assert report.distance_after == pytest.approx(plain.distance_after)
    assert report.distance_after < report.distance_before
    assert (tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()


TURNED = """ g (float[2,5,8] x, int64[2,5] at) => (float[2,5,3] y) {
    q0 = MatMul(x, wq)  q1 = Reshape(q0, heads)  q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk)  k1 = Reshape(k0, few)  k = Transpose<perm = [0,2,1,3]>(k1)
    v0 = MatMul(x, wv)  v1 = Reshape(v0, few)  v = Transpose<perm = [0,2,1,3]>(v1)
    ANGLES  f1 = Transpose<perm = [0,2,1]>(f)  f2 = Concat<axis = -1>(f1, f1)
    c0 = Cos(f2)  s0 = Sin(f2)  c = Unsqueeze(c0, one)  s = Unsqueeze(s0, one)
    qa, qb = Split<axis = -1>(q, halves)  qn = Neg(qb)  qr = Concat<axis = -1>(qn, qa)
    qc = Mul(q, c)  qs = Mul(qr, s)  qt = Add(qc, qs)
    ka, kb = Split<axis = -1>(k, halves)  kn = Neg(kb)  kr = Concat<axis = -1>(kn, ka)
    kc = Mul(k, c)  ks = Mul(kr, s)  kt = Add(kc, ks)
    kg = Expand(kt, full)  vg = Expand(v, full)  kT = Transpose<perm = [0,1,3,2]>(kg)
    p = MatMul(qt, kT)  r = Div(p, root)  m = Add(r, mask)  w = Softmax<axis = -1>(m)
    o = MatMul(w, vg)  o1 = Transpose<perm = [0,2,1,3]>(o)  o2 = Reshape(o1, back)
    z = MatMul(o2, wo)  u = MatMul(z, up)  h = Tanh(u)  y = MatMul(h, down) }"""
GIVEN = """pf = Cast<to = 1>(at)  pu = Unsqueeze(pf, one)  ie = Expand(angle, wide)
    f = MatMul(ie, pu)"""
COUNTED = "f = Mul(angle, count)"
ROTARY = """ g (float[2,5,8] x, int64[2,5] at) => (float[2,5,3] y) {
    q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
    q1 = com.microsoft.RotaryEmbedding<num_heads = 2>(q0, at, cos, sin)
    k1 = com.microsoft.RotaryEmbedding<num_heads = 1>(k0, at, cos, sin)
    k2 = Concat<axis = -1>(k1, k1)  v2 = Concat<axis = -1>(v0, v0)
    o = com.microsoft.MultiHeadAttention<num_heads = 2, unidirectional = 1>(q1, k2, v2)
    z = MatMul(o, wo)  u = MatMul(z, up)  h = Tanh(u)  y = MatMul(h, down) }"""
GROUPED = """ g (float[2,5,8] x, int64[2,5] at) => (float[2,5,3] y) {
    QKV  o = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 1, do_rotary = 1>(
        NAMES, , , ends, total, cos, sin)
    z = MatMul(o, wo)  u = MatMul(z, up)  h = Tanh(u)  y = MatMul(h, down) }"""
APART = ("q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)", "q0, k0, v0")
AT_ONCE = ("t = MatMul(x, wt)", "t, , ")
ROTATED = {"wq": (8, 32), "wk": (8, 16), "wv": (8, 16), "wo": (32, 8), "up": (8, 6), "down": (6, 3)}
ANGLE = np.float32(2) ** -np.arange(8, dtype=np.float32).reshape(1, 8, 1)
AROUND = {
    **{"heads": np.array([0, 5, 2, 16]), "few": np.array([0, 5, 1, 16]), "one": np.array([1])},
    **{"halves": np.array([8, 8]), "full": np.array([2, 2, 5, 16]), "root": np.float32(4)},
    **{"mask": np.triu(np.full((5, 5), -np.inf, np.float32), 1), "back": np.array([0, 5, 32])},
    **{"angle": ANGLE, "wide": np.array([2, 1, 1])},
    "count": np.arange(5, dtype=np.float32).reshape(1, 1, 5),
    **{"ends": np.array([4, 4], np.int32), "total": np.array(5, np.int32)},
}


def with_angles(text: str, seed: int) -> onnx.ModelProto:
    """A model with rotary embeddings, whose numbers are those of all that have this seed."""
    drawn = np.random.default_rng(seed)
    held = {n: drawn.standard_normal(s).astype(np.float32) for n, s in ROTATED.items()}
    held["wt"] = np.concatenate([held["wq"], held["wk"], held["wv"]], 1)
    angles = np.arange(7, dtype=np.float32)[:, None] * ANGLE.reshape(1, 8)
    held |= {**AROUND, "cos": np.cos(angles), "sin": np.sin(angles)}
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    return model(text, {name: array for name, array in held.items() if name in words})


FORMS = {
    "given": TURNED.replace("ANGLES", GIVEN),
    "counted": TURNED.replace("ANGLES", COUNTED),
    "rotary": ROTARY,
    "apart": GROUPED.replace("QKV", APART[0]).replace("NAMES", APART[1]),
    "at once": GROUPED.replace("QKV", AT_ONCE[0]).replace("NAMES", AT_ONCE[1]),
}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("given", "rotary"),
        ("at once", "counted"),
        pytest.param("rotary", "given", marks=pytest.mark.slow),
        pytest.param("counted", "apart", marks=pytest.mark.slow),
        pytest.param("apart", "at once", marks=pytest.mark.slow),
    ],
)
def test_rotary_embeddings_and_groups_of_heads(one: str, two: str, tmp_path: Path) -> None:
    b, a, alike = (with_angles(FORMS[n], seed) for n, seed in ((one, 0), (two, 1), (one, 1)))
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    plain = fxrebasin.onnx_transform(b, ref=alike, out=tmp_path / "plain.onnx")
    assert report.log10_order == pytest.approx(plain.log10_order)
    assert report.distance_after == pytest.approx(plain.distance_after)
    assert report.distance_after < report.distance_before
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [("qn = Neg(qb)", "qn = Identity(qb)"), ("ks = Mul(kr, s)", "ks = Mul(kr, c)")],
)
def test_how_angles_are_used_matters(before: str, after: str) -> None:
    assert before in FORMS["given"]
    other = with_angles(FORMS["given"].replace(before, after), 1)
    with pytest.raises(ArchitectureMismatchError):
        paired(with_angles(ROTARY, 0), other)


IN_BODIES = """ g (float[n,4] x) => (float[n,3] y) {
    sum = ReduceSum<keepdims = 0>(x)  c = Greater(sum, limit)
    z = If(c) <then_branch = one () => (float[n,6] t)
                 { p = MatMul(x, w1)  q = Add(p, b1)  t = LayerNormalization(q, gain, shift) },
               else_branch = two () => (float[n,6] t)
                 { p = MatMul(x, w2)  t = com.microsoft.BiasGelu(p, b2) }>
    r = Loop(three, yes, z) <body = turn (int64 i, bool k, float[n,6] u) => (bool l, float[n,6] v)
                 { l = Identity(k)  p = MatMul(u, w3)  q = Add(p, b3)  v = Tanh(q) }>
    y = MatMul(r, w4) }"""
SPELT_OUT = [
    (
        "t = LayerNormalization(q, gain, shift)",
        "m = ReduceMean<axes = [-1]>(q)  d = Sub(q, m)  s = Mul(d, d)  va = ReduceMean<axes = [-1]>"
        "(s)  e = Add(va, eps)  o = Sqrt(e)  n = Div(d, o)  h = Mul(n, gain)  t = Add(h, shift)",
    ),
    (
        "t = com.microsoft.BiasGelu(p, b2)",
        "q = Add(p, b2)  d = Div(q, root)  e = Erf(d)  f = Add(e, one)  h = Mul(q, f)"
        "  t = Mul(h, half)",
    ),
    (
        "p = MatMul(u, w3)  q = Add(p, b3)  v = Tanh(q)",
        "tr = Transpose<perm = [1,0]>(u)  un = Unsqueeze(tr, first)  p = Conv(un, cw3, b3)"
        "  sq = Squeeze(p, first)  q = Transpose<perm = [1,0]>(sq)  v = Tanh(q)",
    ),
]
BODY_WEIGHTS = {
    **{"w1": (4, 6), "b1": (6,), "gain": (6,), "shift": (6,), "w2": (4, 6), "b2": (6,)},
    **{"w3": (6, 6), "b3": (6,), "w4": (6, 3)},
}
BODY_NUMBERS = {
    **{"limit": np.float32(1e9), "three": np.int64(3), "yes": np.bool_(True)},
    **{"eps": np.float32(1e-5), "root": np.float32(2**0.5), "one": np.float32(1)},
    **{"half": np.float32(0.5), "first": np.array([0])},
}


def arrays_of(file: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in file.graph.initializer}


def branching(
    text: str, seed: int, weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A branch and a loop, with weights in the form that the text reads: some, or of a seed."""
    arrays = arrays_of(model(IN_BODIES, {**BODY_WEIGHTS, **BODY_NUMBERS}, seed, checked=False))
    arrays.update(weights or {})
    if "cw3" in arrays:
        arrays["w3"] = arrays["cw3"][..., 0].T.copy()
    arrays["cw3"] = arrays["w3"].T[..., None].copy()
    return model(text, {name: array for name, array in arrays.items() if name in text})


def spelt_out(places: tuple[int, ...]) -> str:
    text = IN_BODIES
    for at in places:
        assert SPELT_OUT[at][0] in text
        text = text.replace(*SPELT_OUT[at])
    return text


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("turned", [False, True])
def test_bodies_may_be_spelt_otherwise(
    places: tuple[int, ...], turned: bool, tmp_path: Path
) -> None:
    texts = [IN_BODIES, spelt_out(places)][:: -1 if turned else 1]
    b = tmp_path / "b.onnx"
    onnx.save(branching(texts[0], 0), b)
    found = planted(b, tmp_path / "a.onnx")
    assert found.symmetry.log10_order() > 2
    other = branching(texts[1], 0, arrays_of(onnx.load(tmp_path / "a.onnx")))
    fxrebasin.onnx_transform(b, ref=other, out=tmp_path / "out.onnx")
    mine, wanted = (arrays_of(onnx.load(tmp_path / name)) for name in ("out.onnx", "a.onnx"))
    for name in mine:
        assert np.array_equal(mine[name], wanted[name]), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("h = Mul(q, f)", "h = Mul(p, f)"),  # in the branch that is taken
        ("h = Mul(n, gain)", "n2 = Abs(n)  h = Mul(n2, gain)"),  # in the one that is not
        ("v = Tanh(q)", "v = Relu(q)"),
        ("c = Greater(sum, limit)", "c = Less(sum, limit)"),
        ("p = Conv(un, cw3, b3)", "p = Conv(un, cw3)"),
    ],
)
def test_what_spelt_out_bodies_compute_matters(before: str, after: str) -> None:
    text = spelt_out((0, 1, 2))
    assert before in text
    with pytest.raises(ArchitectureMismatchError, match=r"in the reference|something else"):
        paired(branching(IN_BODIES, 0), branching(text.replace(before, after), 1))


REMEMBERING = """ g (int64[n,s] ids, int64[n,t] mask, POSITIONS float[n,p,6] past)
                    => (float[n,s,3] y, float[n,u,6] now) {
    COMPUTED  e = Gather(table, ids)  a = Gather(places, pos)  h = Add(e, a)  q = MatMul(h, w1)
    now = Concat<axis = 1>(past, q)  m = ReduceMean<axes = [1], keepdims = 1>(now)
    d = Add(q, m)  r = Relu(d)  y = MatMul(r, w2) }"""
GIVEN_POSITIONS = ("int64[n,s] pos,", "")
COUNTED_POSITIONS = (
    "",
    "c = CumSum(mask, last)  o = Sub(c, last)  sh = Shape(ids)  k = Gather(sh, lasts)"
    "  st = Neg(k)  pos = Slice(o, st, end, lasts)",
)
NO_POSITIONS = ("", "pos = Mul(ids, zero)")
MEMORY_WEIGHTS = {"table": (9, 8), "places": (40, 8), "w1": (8, 6), "w2": (6, 3)}
MEMORY_NUMBERS = {
    **{"last": np.int64(1), "lasts": np.array([1]), "end": np.array([2**31]), "zero": np.int64(0)},
}


def remembering(form: tuple[str, str], seed: int, ids: str = "ids") -> onnx.ModelProto:
    """A decoder with what it has seen before, whose positions are given or computed."""
    text = REMEMBERING.replace("POSITIONS", form[0]).replace("COMPUTED", form[1])
    text = text.replace(" ids", f" {ids}").replace("(ids", f"({ids}")
    found = model(text, {**MEMORY_WEIGHTS, **MEMORY_NUMBERS}, seed)
    mask = next(item for item in found.graph.input if item.name == "mask")
    mask.type.tensor_type.shape.dim[1].dim_param = "p + s"
    return found


@pytest.mark.parametrize("other", [COUNTED_POSITIONS, NO_POSITIONS])
@pytest.mark.parametrize("turned", [False, True])
def test_positions_may_be_an_input_or_computed(
    other: tuple[str, str], turned: bool, tmp_path: Path
) -> None:
    one, two = (other, GIVEN_POSITIONS) if turned else (GIVEN_POSITIONS, other)
    b, a, alike = remembering(one, 0), remembering(two, 1), remembering(one, 1)
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    plain = fxrebasin.onnx_transform(b, ref=alike, out=tmp_path / "plain.onnx")
    assert report.distance_after == plain.distance_after < report.distance_before
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_inputs_that_only_one_file_has_are_refused_unless_known() -> None:
    wrong = COUNTED_POSITIONS[0], COUNTED_POSITIONS[1].replace("Sub(c, last)", "Add(c, last)")
    with pytest.raises(ArchitectureMismatchError):
        paired(remembering(GIVEN_POSITIONS, 0), remembering(wrong, 1))
    renamed = remembering(COUNTED_POSITIONS, 1, "tokens")
    with pytest.raises(ArchitectureMismatchError, match="alone has the inputs ids, pos, and"):
        paired(remembering(GIVEN_POSITIONS, 0), renamed)
