"""Tensors that a file keeps once and several nodes read: each use is a weight of its own."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper
from torch import Tensor, nn

import fxrebasin
from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
from tests.support.onnx_graphs import model, planted

LAYERS = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  b = Add(a, v)  c = Relu(b)
    d = MatMul(c, w2)  e = Add(d, v)  f = Relu(e)
    h = MatMul(f, w3)  i = Add(h, u)  k = Relu(i)  y = MatMul(k, w4) }"""
WEIGHTS: dict[str, Any] = {
    **{"w1": (3, 6), "v": (6,), "w2": (6, 6), "w3": (6, 5), "u": (5,), "w4": (5, 2)}
}


def log(*sizes: int) -> float:
    return sum(math.log10(math.factorial(size)) for size in sizes)


def tensors_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def rebased(folder: Path, made: ModelProto) -> fxrebasin.RebasinReport:
    """Plant a permutation, and find it again."""
    onnx.save(made, folder / "b.onnx")
    planted(folder / "b.onnx", folder / "a.onnx")
    report = fxrebasin.onnx_transform(
        folder / "b.onnx", ref=folder / "a.onnx", out=folder / "out.onnx"
    )
    assert report.distance_before > 0 == report.distance_after
    return report


def test_a_shared_bias_does_not_tie_layers(tmp_path: Path) -> None:
    report = rebased(tmp_path, model(LAYERS, WEIGHTS))
    assert report.log10_order == pytest.approx(log(6, 6, 5))
    assert any("1 new tensor, v@e" in note for note in report.notes)
    result, wanted = tensors_of(tmp_path / "out.onnx"), tensors_of(tmp_path / "a.onnx")
    assert result.keys() == {*WEIGHTS, "v@e"} == wanted.keys()
    assert all(np.array_equal(result[name], wanted[name]) for name in result)
    assert not np.array_equal(result["v"], result["v@e"])


FORMS = """ g (float[n,3] x) => (float[n,2] y) {
    s = Shape(w1)  z = ConstantOfShape(s)  t = CastLike(x, w2)  m = Size(u)  r = Shape(named)
    o = Cast<to=1>(m)  a = MatMul(t, w1)  b = Add(a, v)  c = Relu(b)  d = MatMul(c, w2)
    e = Add(d, u)  f = Relu(e)  h = MatMul(f, w4)  i = ReduceSum<keepdims=0>(z)
    p = Cast<to=7>(i)  q = ReduceSum<keepdims=0>(r)  j = Mul(p, q)  k = Cast<to=1>(j)
    l = Mul(k, o)  y = Add(h, l) }"""


def test_nodes_that_look_at_a_shape_or_a_type_share_nothing(tmp_path: Path) -> None:
    made = model(FORMS, {**WEIGHTS, "w4": (6, 2), "u": (6,), "named": (6,)})
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    held["named"].raw_data, held["named"].float_data[:] = held["v"].raw_data, held["v"].float_data
    report = rebased(tmp_path, made)
    assert report.log10_order == pytest.approx(log(6, 6))
    found, wanted = tensors_of(tmp_path / "out.onnx"), tensors_of(tmp_path / "a.onnx")
    assert found.keys() == {tensor.name for tensor in made.graph.initializer}
    assert all(np.array_equal(found[name], wanted[name]) for name in found if name != "named")
    assert np.array_equal(found["named"], found["v"])  # another name of a weight


def test_all_else_in_the_file_stays(tmp_path: Path) -> None:
    made = model(LAYERS, WEIGHTS)
    rebased(tmp_path, made)
    result = onnx.load(tmp_path / "out.onnx")
    changed = [n for n, m in zip(result.graph.node, made.graph.node, strict=True) if n != m]
    assert [node.output[0] for node in changed] == ["e"]
    for graph in (result.graph, made.graph):
        del graph.initializer[:]
        graph.node[4].ClearField("input")
    assert result == made


def test_the_inverse_restores_every_tensor(tmp_path: Path) -> None:
    made = model(LAYERS, WEIGHTS)
    report = rebased(tmp_path, made)
    assert report.certificate is not None
    back = report.certificate.inverse()
    fxrebasin.onnx_apply(tmp_path / "out.onnx", back, tmp_path / "back.onnx")
    found, before = tensors_of(tmp_path / "back.onnx"), tensors_of(tmp_path / "b.onnx")
    assert found.keys() == {*before, "v@e"}
    assert all(np.array_equal(found[name], before[name]) for name in before)
    assert np.array_equal(found["v@e"], before["v"])


def test_nothing_gets_a_tensor_of_its_own_without_need(tmp_path: Path) -> None:
    made = model(LAYERS, WEIGHTS)
    report = fxrebasin.onnx_transform(made, ref=made, out=tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == made
    assert not any("new tensor" in note for note in report.notes)


@pytest.mark.parametrize("shared_in_reference", [True, False])
def test_either_file_may_share(shared_in_reference: bool, tmp_path: Path) -> None:
    shared = model(LAYERS, WEIGHTS)
    own = model(LAYERS, WEIGHTS)
    copy = own.graph.initializer.add()
    copy.CopyFrom(next(t for t in own.graph.initializer if t.name == "v"))
    copy.name = own.graph.node[4].input[1] = "v2"
    onnx.save(shared, tmp_path / "shared.onnx")
    onnx.save(own, tmp_path / "own.onnx")
    source, reference = ("own", "shared") if shared_in_reference else ("shared", "own")
    planted(tmp_path / f"{source}.onnx", tmp_path / "moved.onnx")
    out = tmp_path / "out.onnx"
    report = fxrebasin.onnx_transform(
        tmp_path / "moved.onnx", ref=tmp_path / f"{reference}.onnx", out=out
    )
    assert report.distance_before > 0 == report.distance_after
    found = {array.tobytes() for array in tensors_of(out).values()}
    assert found == {array.tobytes() for array in tensors_of(tmp_path / "own.onnx").values()}


def test_merging_with_a_file_that_was_taken_apart(tmp_path: Path) -> None:
    rebased(tmp_path, model(LAYERS, WEIGHTS))
    moved = tensors_of(tmp_path / "out.onnx")
    fxrebasin.onnx_merge([tmp_path / "b.onnx", tmp_path / "out.onnx"], tmp_path / "mean.onnx")
    mean = tensors_of(tmp_path / "mean.onnx")
    before = tensors_of(tmp_path / "b.onnx")["v"].astype(np.float64)
    for name in ("v", "v@e"):
        expected = ((before + moved[name]) / 2).astype(np.float32)
        assert np.array_equal(mean[name], expected)


class Tied(nn.Module):
    """An embedding that is the head as well, and layers with equal norms."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))
        self.ways = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        for layer, norm, way in zip(self.layers, self.norms, self.ways, strict=True):
            hidden = hidden + way(torch.relu(norm(layer(hidden))))
        return hidden @ self.table.weight.T


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_equal_tensors_that_an_exporter_keeps_once_are_those_of_the_module(
    dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, ids = Tied().eval(), torch.randint(0, 11, (2, 7))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    first, second = net.norms
    second.load_state_dict(first.state_dict())
    net.layers[1].bias.data.copy_(net.layers[0].bias.data)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (ids,), path, dynamo=dynamo, verbose=False, external_data=False)
    merged = onnx.load(path)
    norms = [t for t in merged.graph.initializer if t.name.startswith("norms")]
    assert len(norms) == 2  # of four; both exporters keep equal tensors once
    expected = fxrebasin.analyze(net, ids).log10_order()
    assert find(read(merged)).symmetry.log10_order() == pytest.approx(expected)
    report = rebased(tmp_path, merged)
    assert report.log10_order == pytest.approx(expected)
    sizes = [array.shape for array in tensors_of(tmp_path / "out.onnx").values()]
    assert sizes.count((11, 6)) == 1


def test_external_data_grow(tmp_path: Path) -> None:
    made = model(LAYERS, WEIGHTS)
    for tensor in made.graph.initializer:
        external_data_helper.set_external_data(tensor, "b.data")
    report = rebased(tmp_path, made)
    assert any("new tensor" in note for note in report.notes)
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert all(t.data_location == TensorProto.EXTERNAL for t in stored)


def test_tensors_of_old_files_are_inputs_too(tmp_path: Path) -> None:
    text = LAYERS.replace("float[n,3] x", "float[n,3] x, float[6] v")
    made = model(text, WEIGHTS)
    for tensor in made.graph.initializer:
        if tensor.name != "v":
            value = onnx.helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims))
            made.graph.input.append(value)
    made.ir_version = 3
    made.opset_import[0].version = 8
    del made.opset_import[1]
    rebased(tmp_path, made)
    result = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(result)
    assert result.graph.input[-1].name == "v@e"


def test_tensors_of_constant_nodes(tmp_path: Path) -> None:
    made = model(LAYERS, WEIGHTS)
    tensor = next(t for t in made.graph.initializer if t.name == "v")
    made.graph.initializer.remove(tensor)
    made.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["v"], value=tensor))
    report = rebased(tmp_path, made)
    assert report.log10_order == pytest.approx(log(6, 6, 5))
    assert "v@e" in tensors_of(tmp_path / "out.onnx")


def test_both_branches_that_read_a_tensor_read_the_same(tmp_path: Path) -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        a = MatMul(x, w1)
        z = If(c) <then_branch = one () => (float[n,6] t) { p = Add(a, v)  t = Relu(p) },
                   else_branch = two () => (float[n,6] t) { q = Add(a, v)  t = Tanh(q) }>
        y = MatMul(z, w2) }"""
    weights = {"w1": (3, 6), "v": (6,), "w2": (6, 2), "zero": np.float32(0)}
    rebased(tmp_path, model(text, weights))
    assert tensors_of(tmp_path / "out.onnx").keys() == weights.keys()


def test_uses_inside_a_body(tmp_path: Path) -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        z = If(c) <then_branch = one () => (float[n,6] t) {
                        v = Constant<value = float[6] {1, 2, 3, 4, 5, 6}>()
                        a = MatMul(x, w1)  b = Add(a, v)  d = Relu(b)
                        e = MatMul(d, w2)  f = Add(e, v)  t = Relu(f) },
                   else_branch = two () => (float[n,6] t) { q = MatMul(x, w0)  t = Tanh(q) }>
        y = MatMul(z, w3) }"""
    weights = {"w0": (3, 6), "w1": (3, 6), "w2": (6, 6), "w3": (6, 2), "zero": np.float32(0)}
    report = rebased(tmp_path, model(text, weights))
    assert report.log10_order == pytest.approx(log(6, 6))
    assert any("v@f" in note for note in report.notes)


NORMALISED = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  b = Relu(a)
    l = ReduceL2<axes = [0, 1]>(v)  u = Div(v, l)  c = MatMul(b, u)  d = Add(c, s)  e = Relu(d)
    f = MatMul(e, w2)  h = Add(f, s)  i = Relu(h)  y = MatMul(i, w3) }"""


def test_a_weight_and_its_length_stay_one_tensor(tmp_path: Path) -> None:
    """A bias that two layers share is taken apart in the same file."""
    weights = {"w1": (3, 5), "v": (5, 6), "s": (6,), "w2": (6, 6), "w3": (6, 2)}
    report = rebased(tmp_path, model(NORMALISED, weights))
    assert report.log10_order == pytest.approx(log(5, 6, 6))
    result, wanted = tensors_of(tmp_path / "out.onnx"), tensors_of(tmp_path / "a.onnx")
    assert result.keys() == {*weights, "s@h"} == wanted.keys()
    assert all(np.array_equal(result[name], wanted[name]) for name in result)
    back = tmp_path / "back.onnx"
    assert report.certificate is not None
    fxrebasin.onnx_apply(tmp_path / "out.onnx", report.certificate.inverse(), back)
    found, before = tensors_of(back), tensors_of(tmp_path / "b.onnx")
    assert all(np.array_equal(found[name], before[name]) for name in before)


def test_weights_that_no_node_reads_go_with_those_that_they_are_copies_of(tmp_path: Path) -> None:
    b, moved, back = (tmp_path / f"{name}.onnx" for name in ("b", "moved", "back"))
    made = model(LAYERS, WEIGHTS)
    w3 = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "w3")
    spare = np.random.default_rng(7).standard_normal(w3.shape).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(w3, "tied"))
    made.graph.initializer.append(numpy_helper.from_array(spare, "spare"))
    onnx.save(made, b)
    order = fxrebasin.analyze(b).random(seed=1)
    fxrebasin.onnx_apply(b, order, moved)
    found = tensors_of(moved)
    assert not np.array_equal(found["w3"], w3)
    assert np.array_equal(found["tied"], found["w3"])
    assert np.array_equal(found["spare"], spare)
    fxrebasin.onnx_apply(moved, order.inverse(), back)
    restored = tensors_of(back)
    assert all(np.array_equal(restored[name], own) for name, own in tensors_of(b).items())


def with_spare(seed: int, name: str, values: np.ndarray[Any, Any] | str, path: Path) -> Path:
    """A file with a tensor that no node reads; the values of another one if that is named."""
    made = model(LAYERS, WEIGHTS, seed)
    if isinstance(values, str):
        values = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == values)
    made.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.save(made, path)
    return path


def test_copies_go_with_what_keeps_the_name_where_uses_part(tmp_path: Path) -> None:
    b = with_spare(0, "tied", "v", tmp_path / "b.onnx")
    order = fxrebasin.analyze(b).random(seed=1)
    fxrebasin.onnx_apply(b, order, tmp_path / "moved.onnx")
    found, before = tensors_of(tmp_path / "moved.onnx"), tensors_of(b)
    assert not np.array_equal(found["v"], found["v@e"])
    assert not np.array_equal(found["v"], before["v"])
    assert np.array_equal(found["tied"], found["v"])
    fxrebasin.onnx_apply(tmp_path / "moved.onnx", order.inverse(), tmp_path / "back.onnx")
    restored = tensors_of(tmp_path / "back.onnx")
    assert all(np.array_equal(restored[name], own) for name, own in before.items())


def test_means_of_weights_that_no_node_reads(tmp_path: Path) -> None:
    """Copies everywhere stay copies; else it is the mean of what goes by the name."""
    spare = np.random.default_rng(7).standard_normal((6, 5)).astype(np.float32)
    a = with_spare(0, "tied", "w3", tmp_path / "a.onnx")
    copy = with_spare(1, "tied", "w3", tmp_path / "copy.onnx")
    without = with_spare(1, "other", spare, tmp_path / "without.onnx")
    apart = with_spare(1, "tied", spare, tmp_path / "apart.onnx")
    misfit = with_spare(1, "tied", spare[:2], tmp_path / "misfit.onnx")
    own, w3 = tensors_of(a)["tied"], tensors_of(copy)["w3"]
    for other, theirs in ((copy, w3), (without, w3), (apart, spare), (misfit, own)):
        out = tmp_path / f"mean-{other.name}"
        fxrebasin.onnx_merge([a, other], out)
        mean = (own.astype(np.float64) + theirs) / 2
        found = tensors_of(out)
        assert np.array_equal(found["tied"], mean.astype(np.float32)), other.name
        assert np.array_equal(found["tied"], found["w3"]) == (theirs is w3)
    fxrebasin.onnx_merge([apart, a], tmp_path / "third.onnx", weights=(0, 1))
    assert np.array_equal(tensors_of(tmp_path / "third.onnx")["tied"], own)


def test_a_copy_of_two_layers_goes_with_that_which_it_is_of_in_the_other_file(
    tmp_path: Path,
) -> None:
    """In the first file, which was not trained yet, both are alike."""
    start = np.random.default_rng(5).standard_normal((6, 6)).astype(np.float32)
    weights = {**WEIGHTS, "w1": start, "w2": start}
    text = LAYERS.replace("float[n,3] x", "float[n,6] x")
    files = []
    for at, start in enumerate((weights, {**WEIGHTS, "w1": (6, 6)})):
        made = model(text, start, at)
        values = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "w2")
        made.graph.initializer.append(numpy_helper.from_array(values, "tied"))
        files.append(tmp_path / f"{at}.onnx")
        onnx.save(made, files[-1])
    fxrebasin.onnx_merge(files, tmp_path / "mean.onnx")
    found = tensors_of(tmp_path / "mean.onnx")
    assert np.array_equal(found["tied"], found["w2"])
    assert not np.array_equal(found["tied"], found["w1"])


def test_our_own_file_read_by_name_is_no_mixture(tmp_path: Path) -> None:
    x, files = torch.randn(2, 6), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        layer = nn.Linear(6, 6)
        net = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 2)).eval()
        files.append(tmp_path / f"{seed}.onnx")
        fxrebasin.export_onnx(net, files[-1], x)
    fxrebasin.onnx_merge(files, tmp_path / "mean.onnx")
    one, two, found = map(tensors_of, (*files, tmp_path / "mean.onnx"))
    assert found.keys() == {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}
    for name, array in found.items():
        mean = (one[name].astype(np.float64) + two[name]) / 2
        assert np.array_equal(array, mean.astype(np.float32)), name


def test_who_asks_for_sizes_is_no_use_of_a_weight(tmp_path: Path) -> None:
    """As `torch.onnx.export(optimize=False)` makes the bias of a convolution that has none."""
    text = """ g (float[n,3,4,4] x) => (float[n,2] y) {{
        c = Conv(x, w{bias})  m = Mul(c, s)  r = Relu(m)
        p = GlobalAveragePool(r)  f = Flatten(p)  y = MatMul(f, v) }}"""
    zeros = "size = Shape<start = 0, end = 1>(w) null = CastLike(zero, w) none = Expand(null, size)"
    weights = {"w": (6, 3, 3, 3), "s": (6, 1, 1), "v": (6, 2)}
    b = model(
        text.format(bias=", none").replace("c = Conv", f"{zeros} c = Conv"),
        weights | {"zero": np.float64(0)},
    )
    assert not read(b).parsed.uses
    order = np.random.default_rng(0).permutation(6)
    moved = {t.name: numpy_helper.to_array(t)[order] for t in b.graph.initializer[:-1]}
    a = model(text.format(bias=""), moved)  # whose exporter leaves the bias out
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert report.distance_before > 0 == report.distance_after
    assert tensors_of(tmp_path / "out.onnx").keys() == {*weights, "zero"}
