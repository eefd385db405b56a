"""Files of which one has a layer and what scales it, and the other both as one layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.importers.onnx.matching import paired
from tests.support.onnx_graphs import model

Arrays = dict[str, np.ndarray]

EPSILON = np.float32(1e-5)
SHAPES = {
    **{"w": (6, 3, 3, 3), "b": (6,), "s": (6,), "t": (6,), "m": (6,), "u": (6,)},
    **{"v": (6, 4, 2, 2), "s2": (8, 1, 1), "t2": (1, 8, 1, 1), "m2": (8, 1, 1), "u2": (8, 1, 1)},
    **{"f": (7, 8), "fb": (7,), "s3": (7,), "t3": (7,), "m3": (7,), "u3": (7,)},
    **{"k": (7, 5), "s4": (5,), "t4": (5,), "last": (5, 2)},
}
UNITS = {
    "first": dict.fromkeys("wbstmu", 0) | {"v": 0},
    "second": {"s2": 0, "t2": 1, "m2": 0, "u2": 0, "f": 1},
    "third": dict.fromkeys(("f", "fb", "s3", "t3", "m3", "u3", "k"), 0),
    "fourth": {"k": 1, "s4": 0, "t4": 0, "last": 0},
}
"""Axes that have one order; groups of a convolution keep theirs."""

WHOLE = {
    "conv": "a = Conv<pads = [1,1,1,1]>(x, w, b)  n = BatchNormalization(a, s, t, m, u)",
    "turned": """c = ConvTranspose<group = 2, strides = [2,2]>(r, v)  c1 = Sub(c, m2)
        e = Add(u2, eps)  root = Sqrt(e)  c2 = Div(c1, root)  c3 = Mul(s2, c2)  d = Add(c3, t2)""",
    "gemm": "q = Gemm<transB = 1>(p, f, fb)  z = BatchNormalization(q, s3, t3, m3, u3)",
    "product": "o = MatMul(h, k)  o1 = Mul(o, s4)  o2 = Add(t4, o1)",
}
FOLDED = {
    "conv": "n = Conv<pads = [1,1,1,1]>(x, w, b)",
    "turned": "d = ConvTranspose<group = 2, strides = [2,2]>(r, v, t2)",
    "gemm": "z = Gemm<transB = 1>(p, f, fb)",
    "product": "o = MatMul(h, k)  o2 = Add(o, t4)",
}
ALL = tuple(WHOLE)


def numbers(seed: int) -> Arrays:
    """Of a model of which nothing is folded."""
    draw = np.random.default_rng(seed)
    found = {n: draw.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()}
    return {n: abs(a) + np.float32(0.5) if n[0] == "u" else a for n, a in found.items()}


def shuffled(held: Arrays, seed: int) -> Arrays:
    """The same with its units in another order."""
    draw, found = np.random.default_rng(seed), dict(held)
    for axes in UNITS.values():
        name, axis = next(iter(axes.items()))
        size = held[name].shape[axis]
        order = draw.permutation(size)
        if "u2" in axes or "u" in axes:  # within the halves that go into one group
            order = np.concatenate([draw.permutation(size // 2) + at for at in (0, size // 2)])
        for name, axis in axes.items():
            found[name] = np.take(found[name], order, axis)
        if "u2" in axes:  # outputs of the groups
            halves = np.split(found["v"], 2)
            pairs = zip(halves, np.split(order % (size // 2), 2), strict=True)
            found["v"] = np.concatenate([np.take(half, at, 1) for half, at in pairs])
    return found


def fold(held: Arrays, which: tuple[str, ...]) -> Arrays:
    """Numbers of layers and of what scales them, multiplied in float32."""
    found = dict(held)
    if "conv" in which:
        factor = held["s"] / np.sqrt(held["u"] + EPSILON)
        found["w"] = held["w"] * factor[:, None, None, None]
        found["b"] = (held["b"] - held["m"]) * factor + held["t"]
    if "turned" in which:
        factor = (held["s2"] / np.sqrt(held["u2"] + EPSILON)).reshape(-1)
        groups = np.repeat(factor.reshape(2, 4), 3, axis=0)
        found["v"] = held["v"] * groups[:, :, None, None]
        found["t2"] = held["t2"].reshape(-1) - held["m2"].reshape(-1) * factor
    if "gemm" in which:
        factor = held["s3"] / np.sqrt(held["u3"] + EPSILON)
        found["f"] = held["f"] * factor[:, None]
        found["fb"] = (held["fb"] - held["m3"]) * factor + held["t3"]
    if "product" in which:
        found["k"] = held["k"] * held["s4"]
    return found


def written(held: Arrays, which: tuple[str, ...], **changes: str) -> onnx.ModelProto:
    """A file in which some layers are one with what scales them."""
    parts = {n: changes.get(n, (FOLDED if n in which else WHOLE)[n]) for n in ALL}
    text = """ g (float[n,3,4,4] x) => (float[n,2] y) {{ {conv}  r = Relu(n)  {turned}
        i = Relu(d)  p = ReduceMean<axes = [2,3], keepdims = 0>(i)  {gemm}  h = Relu(z)
        {product}  j = Relu(o2)  y = MatMul(j, last) }}""".format(**parts)
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    weights = {name: array for name, array in held.items() if name in words}
    return model(text, {**weights, "eps": EPSILON} if "eps" in words else weights)


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ((), ALL),
        (ALL, ()),
        (("conv", "product"), ("turned", "gemm")),
        pytest.param(("gemm",), ("gemm", "conv"), marks=pytest.mark.slow),
        pytest.param(("turned",), ALL, marks=pytest.mark.slow),
    ],
)
def test_what_one_file_has_folded(
    own: tuple[str, ...], other: tuple[str, ...], tmp_path: Path
) -> None:
    b, out = numbers(0), tmp_path / "out.onnx"
    a = shuffled(b, 1)
    report = fxrebasin.onnx_transform(
        written(fold(b, own), own), ref=written(fold(a, other), other), out=out
    )
    assert report.distance_before > 1
    assert report.distance_after < 1e-5
    wanted = fold(a, own)
    for tensor in onnx.load(out).graph.initializer:
        if tensor.name != "eps":
            found = onnx.numpy_helper.to_array(tensor)
            assert np.array_equal(found, wanted[tensor.name].reshape(found.shape)), tensor.name


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [
        (
            "conv",
            "a = Conv<pads = [1,1,1,1]>(x, w, b) l = Relu(a) n = BatchNormalization(l, s, t, m, u)",
            "l = Conv<pads = [1,1,1,1]>(x, w, b) n = Relu(l)",
        ),
        (
            "conv",
            WHOLE["conv"].replace("n =", "l =") + " n = Add(l, a)",
            "l = Conv<pads = [1,1,1,1]>(x, w, b) n = Add(l, l)",
        ),
        ("gemm", WHOLE["gemm"].replace("z =", "l =") + " z = Tanh(l)", FOLDED["gemm"]),
        ("product", WHOLE["product"], "o2 = MatMul(h, k)"),
        ("product", "o = MatMul(h, k) o1 = Div(s4, o) o2 = Add(t4, o1)", FOLDED["product"]),
    ],
)
def test_what_is_no_tail_is_not_folded(name: str, own: str, other: str) -> None:
    b, a = numbers(0), numbers(1)
    mine = written(b, (), **{name: own})
    with pytest.raises(ArchitectureMismatchError):
        paired(mine, written(fold(a, (name,)), (name,), **{name: other}))
    with pytest.raises(ArchitectureMismatchError):
        paired(written(fold(a, (name,)), (name,), **{name: other}), mine)


def test_the_first_of_merged_files_has_the_form_of_the_result(tmp_path: Path) -> None:
    a, b = numbers(0), numbers(1)
    whole, folded = written(a, ()), written(fold(b, ALL), ALL)
    fxrebasin.onnx_merge([folded, whole], tmp_path / "mean.onnx")
    found = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "mean.onnx").graph.initializer
    }
    wanted = {
        n: (x + y) / 2
        for (n, x), y in zip(fold(a, ALL).items(), fold(b, ALL).values(), strict=True)
    }
    for name, array in found.items():
        assert np.allclose(array, wanted[name], rtol=1e-5, atol=1e-6), name
    with pytest.raises(InputError, match="put the one first"):
        fxrebasin.onnx_merge([whole, folded], tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
