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


HIDDEN = """ g (float[n,4] x) => (float[n,3] y) {{
    h = MatMul(x, w1) {between} y = MatMul(r, w2) }}"""
HIDDEN_WEIGHTS = {"w1": (4, 6), "w2": (6, 3)}
NUMBERS = {
    "bounds that no run reaches": ("r = Clip(h, low, high)", {"low": -900.0, "high": 900.0}),
    "places": ("r = Gather<axis = 1>(h, at)", {"at": np.array([5, 1, 2, 3, 4, 0])}),
    "a mask": ("r = Where(kept, h, no)", {"kept": np.arange(6) > 1, "no": 0.0}),
    "whole numbers": (
        "whole = Cast<to = 1>(wq) r = Mul(h, whole)",
        {"wq": np.arange(6, dtype=np.int8)},
    ),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_that_are_no_weights_have_to_be_alike(what: str, tmp_path: Path) -> None:
    between, numbers = NUMBERS[what]
    text = HIDDEN.format(between=between)
    arrays = {
        name: np.asarray(value, np.float32 if isinstance(value, float) else None)
        for name, value in numbers.items()
    }
    a, b = (model(text, HIDDEN_WEIGHTS | arrays, seed=seed) for seed in (0, 1))
    fxrebasin.onnx_merge([a, b], tmp_path / "mean")
    last = next(iter(arrays))
    turned = arrays[last][::-1] if arrays[last].ndim else arrays[last] + 1
    other = model(text, HIDDEN_WEIGHTS | arrays | {last: turned.copy()}, seed=1)
    with pytest.raises(ArchitectureMismatchError, match=f"{last} of .* no weight"):
        fxrebasin.onnx_merge([a, other], tmp_path / "none")
    assert not (tmp_path / "none").exists()


LSTM = """ g (float[t,n,3] x) => (float[n,2] y) {{
    o, h, c = LSTM<hidden_size = 5{activations}>(x, w, r, b)
    s = Squeeze(h, first)  y = MatMul(s, last) }}"""
LSTM_WEIGHTS = {"w": (1, 20, 3), "r": (1, 20, 5), "b": (1, 40), "last": (5, 2)}


def test_graphs_that_only_look_alike_have_no_mean(tmp_path: Path) -> None:
    weights = LSTM_WEIGHTS | {"first": np.array([0])}
    plain, other = (
        model(LSTM.format(activations=text), weights)
        for text in ("", ', activations = ["Sigmoid", "Relu", "Tanh"]')
    )
    with pytest.raises(ArchitectureMismatchError, match="no mean"):
        fxrebasin.onnx_merge([plain, other], tmp_path / "lstm")


def softmax(axis: int, opset: int) -> onnx.ModelProto:
    """Until opset 13 over all axes from this one on, since then over this one."""
    text = """ g (float[n,2,4] x) => (float[n,2,3] y) {{
        h = MatMul(x, w1)  r = Softmax<axis = {axis}>(h)  y = MatMul(r, w2) }}"""
    made = model(text.format(axis=axis), HIDDEN_WEIGHTS, seed=opset)
    made.opset_import[0].version = opset
    return made


def test_nodes_of_other_opsets_have_to_compute_the_same(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureMismatchError, match="no mean"):
        fxrebasin.onnx_merge([softmax(1, 11), softmax(1, 13)], tmp_path / "other")
    fxrebasin.onnx_merge([softmax(2, 11), softmax(2, 13)], tmp_path / "same", weights=(0, 1))
    assert fxrebasin.verify(softmax(2, 13), tmp_path / "same").passed


def test_files_for_other_batches_have_a_mean(tmp_path: Path) -> None:
    text = "g (float[{n},2,2] x) => (float[{n},3] y) {{ f = Reshape(x, to) y = MatMul(f, w) }}"
    files = [model(text.format(n=n), {"w": (4, 3), "to": np.array([n, 4])}, seed=n) for n in (2, 5)]
    fxrebasin.onnx_merge(files, tmp_path / "out", weights=(0, 1))
    last = numpy_helper.to_array(files[1].graph.initializer[0])
    assert np.array_equal(arrays(tmp_path / "out")["w"], last)


def test_inputs_and_outputs_in_another_order_go_by_their_names(tmp_path: Path) -> None:
    text = """g ({ins}) => ({outs}) {{
        a = MatMul(one, w1)  b = MatMul(two, w2)  p = Add(a, b)  q = Relu(p)
        left = MatMul(q, w3)  right = MatMul(q, w4) }}"""
    weights = {"w1": (4, 6), "w2": (4, 6), "w3": (6, 3), "w4": (6, 3)}
    ins, outs = ["float[n,4] one", "float[n,4] two"], ["float[n,3] left", "float[n,3] right"]
    a = model(text.format(ins=", ".join(ins), outs=", ".join(outs)), weights)
    turned = text.format(ins=", ".join(ins[::-1]), outs=", ".join(outs[::-1]))
    b = model(turned, weights, seed=1)
    fxrebasin.onnx_merge([a, b], tmp_path / "out", weights=(0, 1))
    found, wanted = (
        {t.name: numpy_helper.to_array(t).tolist() for t in m.graph.initializer}
        for m in (onnx.load(tmp_path / "out"), b)
    )
    assert found == wanted


def test_weights_of_one_number_throughout_have_a_mean_whoever_wrote_the_files(
    tmp_path: Path,
) -> None:
    """As biases are before training."""
    text = "g (float[n,4] x) => (float[n,3] y) {{ {layer} r = Relu(h) y = MatMul(r, w2) }}"
    one = text.format(layer="h = Gemm(x, w1, b)")
    two = text.format(layer="p = MatMul(x, w1) h = Add(p, b)")
    a, b = (
        model(made, HIDDEN_WEIGHTS | {"b": np.full(6, bias, np.float32)}, seed=at)
        for at, (made, bias) in enumerate([(one, 0.0), (two, 0.5)])
    )
    fxrebasin.onnx_merge([a, b], tmp_path / "out", weights=(0.5, 0.5))
    assert arrays(tmp_path / "out")["b"].tolist() == [0.25] * 6
