"""`analyze` and `verify` on ONNX files, against each other, modules and state dicts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

import fxrebasin
from fxrebasin.errors import CheckpointError, InputError
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, mlp, model, planted
from tests.support.randomise import randomise


def swapped(path: Path) -> Path:
    """A copy of a file in which one weight has two rows exchanged."""
    changed = onnx.load(path)
    tensor = changed.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array[[0, 1]] = array[[1, 0]]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    other = path.with_name("swapped.onnx")
    onnx.save(changed, other)
    return other


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "b.onnx")
    return tmp_path / "b.onnx"


def test_a_file_is_analysed_by_path_and_in_memory(path: Path) -> None:
    for source in (path, str(path), mlp()):
        symmetry = fxrebasin.analyze(source)
        assert symmetry.log10_order() == pytest.approx(math.log10(120))
        assert [axis for c in symmetry.classes for axis in c.axes] == [
            ("w1", 1),
            ("b1", 0),
            ("w2", 0),
        ]
    assert "w2" in symmetry.explain("w1", 1)
    assert symmetry.coverage() == pytest.approx(30 / 32)


def test_the_inputs_of_a_file_may_be_given(path: Path) -> None:
    for inputs in (torch.ones(4, 3), (torch.ones(4, 3),), {"x": np.ones((4, 3), np.float32)}):
        assert fxrebasin.analyze(path, inputs).log10_order() > 2
    with pytest.raises(InputError, match="z"):
        fxrebasin.analyze(path, {"z": torch.ones(4, 3)})
    with pytest.raises(CheckpointError, match="no ONNX file"):
        fxrebasin.analyze("nowhere.onnx")


def test_fewer_outputs_may_count() -> None:
    text = MLP.replace("(float[n,2] y)", "(float[n,2] y, float[n,5] c)")
    graph = model(text, MLP_WEIGHTS)
    assert fxrebasin.analyze(graph).log10_order() == 0
    assert fxrebasin.analyze(graph, outputs=["y"]).log10_order() > 2


def test_two_files(path: Path, tmp_path: Path) -> None:
    planted(path, tmp_path / "a.onnx")
    report = fxrebasin.verify(path, tmp_path / "a.onnx")
    assert report.passed
    assert report.backend == "pytorch-float64"
    assert len(report.inputs) > 1
    assert not fxrebasin.verify(path, swapped(path)).passed
    assert fxrebasin.verify(mlp(), path).passed
    assert not fxrebasin.verify(mlp(), mlp(1)).passed


def test_inputs_and_outputs_in_another_order() -> None:
    """Two inputs of one shape and type are told by their names, which both files have."""
    inputs, outputs = ("float[n,3] p", "float[n,3] q"), ("float[n,2] y", "float[n,5] c")
    body = "{ a = MatMul(p, w1)  b = MatMul(q, v)  c = Sub(a, b)  y = MatMul(c, w2) }"
    weights = {"w1": (3, 5), "v": (3, 5), "w2": (5, 2)}

    def made(step: int, seed: int = 0) -> ModelProto:
        ports = (", ".join(names[::step]) for names in (inputs, outputs))
        return model(" g ({}) => ({}) ".format(*ports) + body, weights, seed)

    assert fxrebasin.verify(made(1), made(-1)).passed
    assert not fxrebasin.verify(made(1), made(-1, 1)).passed


def test_a_difference_below_float32_is_seen(path: Path, tmp_path: Path) -> None:
    """Where onnxruntime alone would see rounding."""
    near = mlp()
    array = numpy_helper.to_array(near.graph.initializer[3]) * np.float32(1 + 2e-7)
    near.graph.initializer[3].CopyFrom(numpy_helper.from_array(array, "b2"))
    report = fxrebasin.verify(path, near)
    assert not report.passed
    assert report.max_rel < 1e-6


def test_a_module_and_a_file(tmp_path: Path) -> None:
    net = randomise(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    file = tmp_path / "net.onnx"
    fxrebasin.export_onnx(net, file, torch.ones(2, 3), optimize=False)
    assert fxrebasin.verify(net, file, torch.ones(2, 3)).passed
    assert fxrebasin.verify(file, net, torch.ones(2, 3)).passed
    assert fxrebasin.verify(net, onnx.load(file), torch.ones(2, 3)).passed
    assert fxrebasin.verify(onnx.load(file), net, torch.ones(2, 3)).path is None
    assert not fxrebasin.verify(randomise(net, 1), file, torch.ones(2, 3)).passed
    assert not fxrebasin.verify(net, onnx.load(file), torch.ones(2, 3)).passed


def test_a_file_and_a_state_dict(path: Path) -> None:
    state = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in mlp().graph.initializer
    }
    assert fxrebasin.verify(path, state).passed
    assert not fxrebasin.verify(path, {**state, "w3": state["w1"]}).passed
    assert not fxrebasin.verify(path, {**state, "w1": state["w1"].flip(0)}).passed
    assert not fxrebasin.verify(path, {**state, "b1": state["b1"].double()}).passed
    zero = model(MLP, {**MLP_WEIGHTS, "b2": np.zeros(2, np.float32)})
    stored = {"b2": torch.tensor([0.0, -0.0])}
    assert not fxrebasin.verify(zero, stored).passed
    with pytest.raises(InputError, match="ONNX file only"):
        fxrebasin.verify(nn.Linear(2, 2), state)
