"""ONNX files are matched and permuted without being written, and permuted by what was kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, EquivalenceError, InputError
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, mlp, model, planted


def tensors(source: Any) -> dict[str, bytes]:
    return {name: bytes_of(tensor) for name, tensor in read(source).parsed.tensors.items()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """`b.onnx`, and `a.onnx` that is b in another order."""
    b, a = tmp_path / "b.onnx", tmp_path / "a.onnx"
    onnx.save(mlp(), b)
    planted(b, a)
    return b, a


def test_match_and_apply_do_what_transform_does(files: tuple[Path, Path], tmp_path: Path) -> None:
    b, a = files
    order = fxrebasin.match(b, ref=a)
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert order.digest() == report.certificate.digest()
    found = fxrebasin.apply(b, order)
    assert found == onnx.load(a) == onnx.load(tmp_path / "out.onnx")
    assert fxrebasin.apply(onnx.load(b), order) == found
    assert fxrebasin.match(onnx.load(b), ref=onnx.load(a)).digest() == order.digest()


def test_a_permutation_is_kept_and_undone(files: tuple[Path, Path], tmp_path: Path) -> None:
    b, a = files
    fxrebasin.match(b, ref=a).save(tmp_path / "p.safetensors")
    order = fxrebasin.Permutation.load(tmp_path / "p.safetensors")
    proof = fxrebasin.onnx_apply(b, order, tmp_path / "out.onnx")
    assert proof is not None
    assert proof.passed
    assert (tmp_path / "out.onnx").read_bytes() == a.read_bytes()
    fxrebasin.onnx_apply(tmp_path / "out.onnx", order.inverse(), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == b.read_bytes()
    assert fxrebasin.onnx_apply(b, order, tmp_path / "quick.onnx", verify=False) is None
    assert (tmp_path / "quick.onnx").read_bytes() == a.read_bytes()
    with pytest.raises(InputError, match="exist"):
        fxrebasin.onnx_apply(b, order, tmp_path / "out.onnx")


def test_a_permutation_of_another_graph_is_refused(tmp_path: Path) -> None:
    order = fxrebasin.analyze(mlp()).random(seed=3)
    small = model(MLP, {"w1": (3, 4), "b1": (4,), "w2": (4, 2), "b2": (2,)})
    with pytest.raises(ArchitectureMismatchError):
        fxrebasin.apply(small, order)
    softmax = model(MLP.replace("Relu(b)", "CumSum(b, one)"), {**MLP_WEIGHTS, "one": np.int64(1)})
    with pytest.raises(EquivalenceError):
        fxrebasin.onnx_apply(softmax, order, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_permutation_that_relies_on_constants_is_refused_for_others() -> None:
    """A table of equal rows lets units trade places; with other rows it does not."""
    text = MLP.replace("c = Relu(b)", "e = Add(b, t)  c = Relu(e)")
    table = np.array([1, 1, 1, 2, 2], np.int64)
    text = text.replace("Add(b, t)", "Add(b, f)").replace("{", "{ f = Cast<to=1>(t)", 1)
    first = model(text, {**MLP_WEIGHTS, "t": table})
    order = fxrebasin.analyze(first).random(seed=3)
    assert fxrebasin.analyze(first).log10_order() == pytest.approx(math.log10(12))
    fxrebasin.apply(model(text, {**MLP_WEIGHTS, "t": table + 1}, 2), order)
    with pytest.raises(ArchitectureMismatchError, match="constants"):
        fxrebasin.apply(model(text, {**MLP_WEIGHTS, "t": table[::-1].copy()}), order)


def test_tensors_that_differ_in_shape_are_ignored(tmp_path: Path) -> None:
    """Another number of classes: the units are those of the hidden layer all the same."""
    b = mlp()
    text = MLP.replace("[n,2]", "[n,7]")
    a = model(text, {"w1": (3, 5), "b1": (5,), "w2": (5, 7), "b2": (7,)})
    with pytest.raises(ArchitectureMismatchError, match="shape"):
        fxrebasin.match(b, ref=a)
    planted_order = fxrebasin.analyze(a).random(seed=4)
    moved = fxrebasin.apply(a, planted_order)
    report = fxrebasin.onnx_transform(b, moved, tmp_path / "o.onnx", ignore=["w2", "b2"])
    assert report.ignored == ("b2", "w2")
    assert report.log10_order == pytest.approx(math.log10(120))
    assert tensors(tmp_path / "o.onnx")["w1"] == tensors(moved)["w1"]
    with pytest.raises(InputError, match="w3"):
        fxrebasin.match(b, ref=a, ignore=["w3"])


@pytest.mark.parametrize("ref", [{"w1": np.zeros(2)}, 3])
def test_a_reference_of_another_kind_is_refused(ref: Any) -> None:
    with pytest.raises(InputError, match="another ONNX file"):
        fxrebasin.match(mlp(), ref=ref)


def test_choices_that_files_do_not_have_are_refused() -> None:
    order = fxrebasin.analyze(mlp()).identity()
    for call in (
        lambda: fxrebasin.analyze(mlp(), state_buffers=["x"]),
        lambda: fxrebasin.match(mlp(), ref=mlp(1), state_buffers=["x"]),
        lambda: fxrebasin.apply(mlp(), order, state_buffers=["x"]),
    ):
        with pytest.raises(InputError, match="has no buffers"):
            call()


def test_data_of_their_own_files_are_in_the_model_in_memory(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    b, a = files
    path = tmp_path / "split.onnx"
    onnx.save(onnx.load(b), path, save_as_external_data=True, location="x.bin", size_threshold=0)
    found = fxrebasin.apply(path, fxrebasin.match(path, ref=a))
    assert tensors(found) == tensors(a)
    assert not any(t.data_location == TensorProto.EXTERNAL for t in found.graph.initializer)
    assert found.graph.node == onnx.load(b).graph.node
