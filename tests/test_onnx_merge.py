"""Means of ONNX files, and what lies between two of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, InputError
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, mlp, model, planted


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_a_mean_of_three(tmp_path: Path) -> None:
    names = fxrebasin.onnx_merge([mlp(at) for at in range(3)], tmp_path / "mean")
    assert set(names) == {"w1", "b1", "w2", "b2"}
    parts = [
        {t.name: numpy_helper.to_array(t) for t in mlp(at).graph.initializer} for at in (0, 1, 2)
    ]
    for name, found in arrays(tmp_path / "mean").items():
        wanted = sum(part[name].astype(np.float64) for part in parts) / 3
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_between_a_file_and_its_permuted_copy_there_is_nothing_once_it_is_aligned(
    tmp_path: Path,
) -> None:
    a, b, aligned = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "aligned.onnx"
    onnx.save(mlp(), b)
    planted(b, a)
    fxrebasin.onnx_merge([a, b], tmp_path / "naive.onnx", weights=(0.5, 0.5))
    assert not fxrebasin.verify(a, tmp_path / "naive.onnx").passed
    fxrebasin.onnx_transform(b, ref=a, out=aligned)
    changed = fxrebasin.onnx_merge([a, aligned], tmp_path / "half.onnx", weights=(0.3, 0.7))
    assert changed == ()
    assert (tmp_path / "half.onnx").read_bytes() == a.read_bytes()


def test_a_file_that_was_aligned_goes_by_places_not_by_names(tmp_path: Path) -> None:
    other = mlp(1)
    other.graph.initializer[0].name = other.graph.node[0].input[1] = "onnx::1"
    fxrebasin.onnx_merge([mlp(), other], tmp_path / "one", weights=(0, 1))
    found, wanted = arrays(tmp_path / "one"), mlp(1).graph.initializer[0]
    assert np.array_equal(found["w1"], numpy_helper.to_array(wanted))


def test_infinities_that_all_share_stay(tmp_path: Path) -> None:
    masks = [np.array([-np.inf, value], np.float32) for value in (1, 3)]
    files = [model(MLP, {**MLP_WEIGHTS, "b2": mask}) for mask in masks]
    fxrebasin.onnx_merge(files, tmp_path / "mean")
    assert arrays(tmp_path / "mean")["b2"].tolist() == [-np.inf, 2]


@pytest.mark.parametrize("weights", [(1,), (0.5, 0.6), (float("nan"), 0.5)])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sum 1"):
        fxrebasin.onnx_merge([mlp(), mlp(1)], tmp_path / "out", weights)
    with pytest.raises(InputError, match="two or more"):
        fxrebasin.onnx_merge([mlp()], tmp_path / "out")


def test_another_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureMismatchError, match="Tanh"):
        fxrebasin.onnx_merge(
            [mlp(), model(MLP.replace("Relu", "Tanh"), MLP_WEIGHTS)], tmp_path / "o"
        )
    assert not (tmp_path / "o").exists()


def test_a_name_that_is_read_as_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="read as text"):
        fxrebasin.onnx_merge([mlp(), mlp(1)], tmp_path / "mean.textproto")
    assert not list(tmp_path.iterdir())
