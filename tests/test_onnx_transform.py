"""ONNX files are re-based towards others: what is written, and what is refused."""

from __future__ import annotations

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

import fxrebasin
from fxrebasin.errors import (
    ArchitectureMismatchError,
    CheckpointError,
    EquivalenceError,
    InputError,
)
from fxrebasin.exporters.onnx.wire import stored_initializers
from fxrebasin.importers.onnx import permuting
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of, dense
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, mlp, model, planted
from tests.support.randomise import randomise

FIVE = math.log10(math.factorial(5))


class Residual(nn.Module):
    """Convolutions with normalisations, a shortcut, a concatenation, attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 4, 1), nn.SiLU(), nn.Conv2d(4, 6, 1))
        self.side = nn.Conv2d(6, 5, 1)
        self.mix = nn.MultiheadAttention(11, 1, batch_first=True)
        self.norm = nn.LayerNorm(11)
        self.head = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x + self.body(x), self.side(x)], 1).flatten(2).transpose(1, 2)
        x = self.norm(x + self.mix(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


def same_but_weights(one: ModelProto, other: ModelProto) -> bool:
    """Whether two models are the same in everything but the numbers that they hold."""
    found = []
    for item in (one, other):
        bare = ModelProto()
        bare.CopyFrom(item)
        for tensor in bare.graph.initializer:
            for name in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(name)
        found.append(bare.SerializeToString())
    return found[0] == found[1]


def tensors(path: Path) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in read(path).parsed.tensors.items()}


def recovered(path: Path, tmp_path: Path, **options: Any) -> Any:
    """Re-base a file towards a permuted copy of itself; the result has to be that copy."""
    a, out = tmp_path / "a.onnx", tmp_path / "out.onnx"
    planted(path, a)
    assert tensors(path) != tensors(a)
    report = fxrebasin.onnx_transform(path, ref=a, out=out, **options)
    assert tensors(out) == tensors(a)
    assert report.distance_before > 0 == report.distance_after
    assert report.equivalence is not None
    assert report.equivalence.passed
    return report


@pytest.mark.parametrize("dynamo", [True, False])
def test_files_of_both_exporters_are_recovered_bit_for_bit(dynamo: bool, tmp_path: Path) -> None:
    net = randomise(Residual()).eval()
    inputs = (torch.randn(2, 3, 6, 6),)
    path = tmp_path / "b.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, inputs, path, dynamo=dynamo, verbose=False, external_data=False)
    report = recovered(path, tmp_path)
    wanted = fxrebasin.analyze(net, inputs).log10_order()
    assert report.log10_order == pytest.approx(wanted)
    assert same_but_weights(onnx.load(path), onnx.load(tmp_path / "out.onnx"))


def test_only_weights_that_moved_differ(tmp_path: Path) -> None:
    b = mlp()
    b.metadata_props.add(key="who", value="me")
    b.graph.doc_string = "a graph"
    b.graph.initializer[1].doc_string = "a bias"
    onnx.save(b, tmp_path / "b.onnx")
    onnx.save(mlp(1), tmp_path / "a.onnx")
    report = fxrebasin.onnx_transform(
        tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "o"
    )
    out = onnx.load(tmp_path / "o")
    assert same_but_weights(b, out)
    before, after = tensors(tmp_path / "b.onnx"), tensors(tmp_path / "o")
    assert {name for name in before if before[name] != after[name]} == {"w1", "b1", "w2"}
    assert report.log10_order == pytest.approx(FIVE)
    assert report.distance_after < report.distance_before
    (array,) = report.certificate.arrays.values()
    w1 = numpy_helper.to_array(b.graph.initializer[0])
    assert np.array_equal(numpy_helper.to_array(out.graph.initializer[0]), w1[:, array])


def test_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "name", ["w.1", "/deep/w.1/x", "w", ".w", "w.", "a..b", "forward.w", "x w"]
)
def test_names_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    """With dots, slashes, and such as modules have themselves; one name may begin another."""
    renamed = mlp()
    renamed.graph.initializer[0].name = renamed.graph.node[0].input[1] = name
    renamed.graph.initializer[1].name = renamed.graph.node[1].input[1] = "w.1.bias"
    path = tmp_path / "b.onnx"
    onnx.save(renamed, path)
    report = recovered(path, tmp_path)
    plain = name in ("w.1", "/deep/w.1/x", "w", "x w")
    assert (name in report.certificate.layout) == plain
    assert {"w2", "w.1.bias"} <= report.certificate.layout.keys()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("raw", [True, False])
def test_other_types_in_any_encoding(kind: int, raw: bool, tmp_path: Path) -> None:
    text = MLP.replace("MatMul(x, w1)", "MatMul(x, v1)").replace("{", "{ v1 = Cast<to=1>(w1)")
    b = model(text, MLP_WEIGHTS)
    w1 = numpy_helper.to_array(b.graph.initializer[0])
    values = w1.astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor = helper.make_tensor("w1", kind, w1.shape, values.tobytes() if raw else w1, raw=raw)
    b.graph.initializer[0].CopyFrom(tensor)
    path = tmp_path / "b.onnx"
    onnx.save(b, path)
    recovered(path, tmp_path)
    stored = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert stored.HasField("raw_data") == raw
    assert stored.data_type == kind
    assert sorted(bytes_of_elements(stored)) == sorted(bytes_of_elements(tensor))


def bytes_of_elements(tensor: TensorProto) -> list[bytes]:
    return [item.tobytes() for item in numpy_helper.to_array(tensor).reshape(-1)]


def test_a_whole_model_in_half_precision(tmp_path: Path) -> None:
    text = MLP.replace("float[", "float16[")
    weights = {n: np.ones(s) for n, s in MLP_WEIGHTS.items()}
    generator = np.random.default_rng(0)
    halves = {n: generator.standard_normal(v.shape).astype(np.float16) for n, v in weights.items()}
    onnx.save(model(text, halves), tmp_path / "b.onnx")
    recovered(tmp_path / "b.onnx", tmp_path)


def test_weights_that_are_inputs(tmp_path: Path) -> None:
    b = mlp()
    for tensor in b.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        b.graph.input.append(info)
    onnx.save(b, tmp_path / "b.onnx")
    assert recovered(tmp_path / "b.onnx", tmp_path).log10_order == pytest.approx(FIVE)


def test_weights_that_are_constants_of_nodes(tmp_path: Path) -> None:
    b = mlp()
    tensor = b.graph.initializer.pop(0)
    node = helper.make_node("Constant", [], ["w1"], value=tensor)
    b.graph.node.insert(0, node)
    onnx.save(b, tmp_path / "b.onnx")
    assert recovered(tmp_path / "b.onnx", tmp_path).log10_order == pytest.approx(FIVE)


@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_data_in_files_of_their_own(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="b.bin", size_threshold=0)
    onnx.save(mlp(1), tmp_path / "a.onnx")
    before = (tmp_path / "b.bin").read_bytes()
    out = tmp_path / folder / "out.onnx"
    fxrebasin.onnx_transform(path, ref=tmp_path / "a.onnx", out=out)
    plain = tmp_path / "plain.onnx"
    onnx.save(mlp(), tmp_path / "embedded.onnx")
    fxrebasin.onnx_transform(tmp_path / "embedded.onnx", ref=tmp_path / "a.onnx", out=plain)
    assert tensors(out) == tensors(plain)
    assert (tmp_path / "b.bin").read_bytes() == before
    (data,) = out.parent.glob("out.onnx.*.data")
    assert data.stat().st_size == len(before)
    assert all(
        not t.HasField("raw_data")
        for t in onnx.load(out, load_external_data=False).graph.initializer
    )


@pytest.mark.parametrize("location", ["../b.bin", "link.bin", "{above}/b.bin"])
def test_data_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "b.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="b.bin", size_threshold=0)
    (folder / "b.bin").rename(tmp_path / "b.bin")
    (folder / "link.bin").symlink_to(tmp_path / "b.bin")
    moved = onnx.load(path, load_external_data=False)
    for tensor in moved.graph.initializer:
        entry = next(e for e in tensor.external_data if e.key == "location")
        entry.value = location.format(above=tmp_path)
    path.write_bytes(moved.SerializeToString())
    with pytest.raises(CheckpointError, match="not inside the folder"):
        read(path)


def test_the_links_of_a_cache_lead_to_data(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "1", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    onnx.save(
        mlp(), snapshot / "b.onnx", save_as_external_data=True, location="b.bin", size_threshold=0
    )
    for name in ("b.onnx", "b.bin"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert len(read(snapshot / "b.onnx").parsed.tensors) == 4


def test_data_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="b.bin", size_threshold=0)
    (tmp_path / "b.bin").write_bytes((tmp_path / "b.bin").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not complete"):
        read(path)


def test_what_was_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    """A mapped file that is cut off afterwards would end the process."""
    path, data = tmp_path / "b.onnx", tmp_path / "b.bin"
    onnx.save(mlp(), path, save_as_external_data=True, location="b.bin", size_threshold=0)
    wanted = {t.name: numpy_helper.to_array(t) for t in mlp().graph.initializer}
    found = read(path).parsed.tensors
    stored = stored_initializers(path)
    os.truncate(data, 0)
    os.truncate(path, 20)
    with pytest.raises(CheckpointError, match=r"b\.onnx is cut off, or is not an ONNX model"):
        list(stored)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_a_number_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    path.write_bytes(b"\xff" * 5000)
    with pytest.raises(CheckpointError, match="the number at byte 9 does not end"):
        list(stored_initializers(path))


SPARSE: dict[str, tuple[list[int], list[int], list[int], str]] = {
    # shape, values' places and the shape of these, what is said
    "a shape of 4 TiB": ([2**20, 2**20], [1], [1], "takes more than the 2.0 GiB that a tensor"),
    "a negative size": ([-4, -4], [1], [1], "'w' has the shape [-4, -4], which takes more"),
    "a place behind the end": ([2, 3], [6], [1], "not 1 places in its shape, [2, 3]"),
    "a negative place": ([2, 3], [-1], [1], "not 1 places in its shape, [2, 3]"),
    "a column behind the end": ([2, 3], [0, 3], [1, 2], "not 1 places in its shape, [2, 3]"),
    "more places than values": ([2, 3], [0, 1], [2], "the places of the 1 values of the sparse"),
    "places of another rank": ([2, 3], [0, 0, 0], [1, 3], "not 1 places in its shape, [2, 3]"),
}


@pytest.mark.parametrize("fault", SPARSE)
def test_sparse_tensors_are_checked_before_memory_is_asked_for(fault: str) -> None:
    dims, places, shape, said = SPARSE[fault]
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.5])
    found = helper.make_tensor("places", TensorProto.INT64, shape, places)
    sparse = onnx.SparseTensorProto(values=values, indices=found, dims=dims)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        dense(sparse)


@pytest.mark.parametrize(("places", "shape"), [([4], [1]), ([1, 1], [1, 2])])
def test_sparse_tensors_are_read(places: list[int], shape: list[int]) -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.5])
    found = helper.make_tensor("places", TensorProto.INT64, shape, places)
    sparse = onnx.SparseTensorProto(values=values, indices=found, dims=[2, 3])
    assert dense(sparse).tolist() == [[0, 0, 0], [0, 2.5, 0]]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_files_that_are_cut_off_are_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    payload = mlp().SerializeToString()
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(fxrebasin.FxRebasinError, match=r"b\.onnx|fit"):
        read(path)


def test_names_of_the_reference_may_differ(tmp_path: Path) -> None:
    a = mlp(1)
    for number, tensor in enumerate(a.graph.initializer):
        for node in a.graph.node:
            node.input[:] = [f"onnx::{number}" if n == tensor.name else n for n in node.input]
        tensor.name = f"onnx::{number}"
    one = fxrebasin.onnx_transform(mlp(), ref=a, out=tmp_path / "one")
    two = fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert one.distance_after == two.distance_after


def test_the_order_of_nodes_may_differ(tmp_path: Path) -> None:
    text = MLP.replace("y = Add(d, b2)", "e = Identity(x)  y = Add(d, b2)")
    a = model(text.replace("e = Identity(x)  y", "y"), MLP_WEIGHTS, 1)
    node = helper.make_node("Identity", ["x"], ["e"])
    b = model(text, MLP_WEIGHTS)
    a.graph.node.insert(0, node)
    fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "one")
    fxrebasin.onnx_transform(b, ref=model(text, MLP_WEIGHTS, 1), out=tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("Relu(b)", "Sigmoid(b)"), "Sigmoid"),
        (("MatMul(c, w2)", "Gemm<alpha = 2.0>(c, w2)"), "Gemm"),
        (("Add(d, b2)", "Sub(b2, d)"), "Sub"),
        (("c = Relu(b)", "r = Relu(b) c = Tanh(r)"), "nodes|Relu"),
        (("MatMul(x, w1)", "MatMul(x, w3)"), "shape"),
    ],
)
def test_a_foreign_graph_is_refused(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    weights = dict(MLP_WEIGHTS)
    if "w3" in change[1]:
        weights = {"w3": (3, 6), "b1": (6,), "w2": (6, 2), "b2": (2,)}
    other = model(MLP.replace(*change), weights, 1)
    with pytest.raises(ArchitectureMismatchError, match=said):
        fxrebasin.onnx_transform(mlp(), ref=other, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_shared_in_one_file_only_is_refused(tmp_path: Path) -> None:
    text = """ g (int64[n] i, int64[n] j) => (float[n,3] y) {
        a = Gather(w1, i)  b = Gather(w2, j)  y = Sub(a, b) }"""
    with pytest.raises(ArchitectureMismatchError, match="share"):
        fxrebasin.onnx_transform(
            model(text, {"w1": (5, 3), "w2": (5, 3)}),
            ref=model(text.replace("w2", "w1"), {"w1": (5, 3)}),
            out=tmp_path / "out",
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{ q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z) }", "quantised"),
        ("{ c = Constant<value = int4[2] {1, 2}>()  y = Identity(x) }", "quantised .INT4"),
        ("{ y = com.microsoft.nchwc.Conv(x, x) }", "nchwc"),
        ("{ y = Bernoulli(x) }", "Bernoulli"),
    ],
)
def test_graphs_that_are_not_for_this_are_refused(text: str, said: str, tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: [ "" : 17, "com.microsoft.nchwc" : 1 ]>'
        f" g (float[2,3] x) => (float[2,3] y) {text}"
    )
    with pytest.raises(InputError, match=said):
        fxrebasin.onnx_transform(graph, ref=graph, out=tmp_path / "out")


def test_a_wrong_permutation_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        found = right(*args)
        return {**found, "w2": found["w2"].flip(0)}

    right = permuting._moved
    monkeypatch.setattr(permuting, "_moved", wrong)
    with pytest.raises(EquivalenceError):
        fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_interpreter_gives_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxrebasin.importers.onnx.operators import OPERATORS
    from fxrebasin.importers.onnx.registry import Operator

    monkeypatch.setitem(OPERATORS, ("", "Relu"), Operator(torch.sigmoid, False, ""))
    with pytest.raises(EquivalenceError, match="onnxruntime"):
        fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(InputError, match="exist"):
        fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / "out")
    fxrebasin.onnx_transform(mlp(), ref=mlp(1), out=tmp_path / "out", overwrite=True)
    assert onnx.load(tmp_path / "out").graph.node


def test_only_some_outputs_have_to_stay(tmp_path: Path) -> None:
    text = MLP.replace("(float[n,2] y)", "(float[n,2] y, float[n,5] c)")
    b, a = model(text, MLP_WEIGHTS), model(text, MLP_WEIGHTS, 1)
    assert fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "all").log10_order == 0
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "some", outputs=["y"])
    assert report.log10_order == pytest.approx(FIVE)
    assert tensors(tmp_path / "some") != tensors(tmp_path / "all")


@pytest.mark.parametrize(("opset", "seed"), [(18, 1), (21, 0)])
def test_groups_of_two_leave_more_open_than_others(opset: int, seed: int, tmp_path: Path) -> None:
    text = """ g (float[n,3] x) => (float[n,2] y) {
        a = MatMul(x, w)  z = Add(a, c)  h = GroupNormalization<num_groups = 8>(z, s, b)
        r = Relu(h)  y = MatMul(r, v) }"""
    of_each = (16,) if opset > 18 else (8,)
    shapes = {"w": (3, 16), "c": (16,), "s": of_each, "b": of_each, "v": (16, 2)}
    own, other = (model(text, shapes, at, checked=False) for at in (seed, seed + 9))
    for made in (own, other):
        made.opset_import[0].version = opset
    report = fxrebasin.onnx_transform(own, ref=other, out=tmp_path / "out.onnx")
    assert report.distance_after < report.distance_before
