"""Recurrent layers whose weights the graph joins of gates: followed without each element."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
from fxrebasin.passes.propagate.propagate import propagate
from tests.support.onnx_graphs import model
from tests.support.onnx_proofs import assert_a_file_is_recovered

HIDDEN, STEPS, GATES = 24, 4, 4


class Recurrent(nn.Module):
    """A layer between two others."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.first = nn.Linear(3, 32)
        self.layer = kind(32, HIDDEN, batch_first=True, **options)
        self.last = nn.Linear(HIDDEN * (1 + self.layer.bidirectional), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x))[0])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"bidirectional": True}),
        (nn.LSTM, {"num_layers": 2, "bias": False}),
        (nn.GRU, {"bidirectional": True}),
        (nn.RNN, {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}),
        (nn.RNN, {"num_layers": 2, "bias": False}),
    ],
)
def test_files_have_the_group_of_the_model_and_no_unit_for_each_element(
    kind: type[nn.RNNBase], options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(kind, **options).eval(), torch.randn(2, STEPS, 3)
    fxrebasin.export_onnx(net, tmp_path / "b.onnx", x)
    report = assert_a_file_is_recovered(tmp_path / "b.onnx")
    assert report.log10_order == pytest.approx(fxrebasin.analyze(net, x).log10_order())
    assert report.log10_order > math.log10(math.factorial(32))
    source = read(tmp_path / "b.onnx")
    assert not source.parsed.uses  # a slice for each gate makes no tensor of each
    rows = sum(len(tensor) for tensor in source.weights.values())
    assert propagate(source.module(), (x,), {}).ledger.size < 4 * rows


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_plain_recurrent_layers_take_any_number_of_steps(
    nonlinearity: str, batch_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "nonlinearity": nonlinearity}
    layer = nn.RNN(5, 6, batch_first=batch_first, **options).eval()
    x = torch.randn(7, 3, 5)
    report = fxrebasin.export_onnx(layer, tmp_path / "m.onnx", x)
    file = onnx.load(tmp_path / "m.onnx")
    sizes = [dim.dim_param for dim in file.graph.input[0].type.tensor_type.shape.dim]
    assert (all(sizes[:2]), report.notes) == (True, ())
    assert [node.op_type for node in file.graph.node].count("RNN") == 2
    assert fxrebasin.verify(layer, tmp_path / "m.onnx", torch.randn(11, 13, 5)).passed


def test_files_of_permuted_models_are_recovered(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(nn.LSTM, bidirectional=True).eval(), torch.randn(2, STEPS, 3)
    order = fxrebasin.analyze(net, x).random(seed=3)
    fxrebasin.export_onnx(net, tmp_path / "b.onnx", x)
    net.load_state_dict(order.permute_state_dict(net.state_dict()))
    fxrebasin.export_onnx(net, tmp_path / "a.onnx", x)
    report = fxrebasin.onnx_transform(
        tmp_path / "b.onnx", ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx"
    )
    assert report.distance_before > 0 == report.distance_after
    there, here = (
        {t.name: t.SerializeToString() for t in onnx.load(path).graph.initializer}
        for path in (tmp_path / "a.onnx", tmp_path / "out.onnx")
    )
    assert here == there


JOINED = """ g (float[steps,2,3] x) => (ys)
    {{ f = MatMul(x, first)
      w0 = Concat<axis = 0>(wi, wo, wf, wc)  w = Unsqueeze(w0, zero)
      r0 = Concat<axis = 0>(ri, ro, rf, rc)  r = Unsqueeze(r0, zero)
      h, _, _c = LSTM<hidden_size = 24 {options}>(f, w, r, b)
      s = Squeeze(h, one)  y = MatMul(s, last) {more} }}"""


def joined(options: str = "", more: str = "", outputs: str = "float[steps,2,2] y") -> Any:
    """One direction whose weights are four tensors each."""
    weights: dict[str, Any] = {"first": (3, 5), "b": (1, 2 * GATES * HIDDEN), "last": (HIDDEN, 2)}
    weights.update({f"w{gate}": (HIDDEN, 5) for gate in "iofc"})
    weights.update({f"r{gate}": (HIDDEN, HIDDEN) for gate in "iofc"})
    weights.update({"zero": np.array([0]), "one": np.array([1])})
    text = JOINED.replace("ys", outputs).format(options=options, more=more)
    return model(text, weights, checked=False)


FORMS = {
    "read by the layer only": joined(),
    "read by others": joined(
        more="z = ReduceSum<keepdims = 0>(w)", outputs="float[s,2,2] y, float z"
    ),
    "functions of its own": joined(', activations = ["HardSigmoid", "Tanh", "Softsign"]'),
    "numbers are bounded": joined(", clip = 0.5"),
    "a gate that is not read": joined(", input_forget = 1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_of_joined_weights_compute_what_onnxruntime_does(form: str, tmp_path: Path) -> None:
    onnx.save(FORMS[form], tmp_path / "b.onnx")
    report = assert_a_file_is_recovered(tmp_path / "b.onnx")
    sizes = (5, HIDDEN, *[HIDDEN] * (form == "a gate that is not read"))
    moving = sum(math.log10(math.factorial(size)) for size in sizes)
    assert report.log10_order == pytest.approx(moving)


def test_a_weight_joined_otherwise_is_read_as_it_is(tmp_path: Path) -> None:
    made = joined()
    turn = next(node for node in made.graph.node if node.output[0] == "w0")
    turn.attribute[0].i = 1  # along the other axis, of tensors that have other shapes
    for name in ("wi", "wo", "wf", "wc"):
        tensor = next(item for item in made.graph.initializer if item.name == name)
        values = np.random.default_rng(0).standard_normal((4 * HIDDEN, 5 if name == "wi" else 0))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    found = find(read(made))
    assert found.symmetry.log10_order() == pytest.approx(
        math.log10(math.factorial(5)) + math.log10(math.factorial(HIDDEN))
    )


BOUNDS = """ g (float[steps,2,3] x) => (float[steps,2,2] y)
    { f = MatMul(x, first)
      n = Shape<start = -1>(state)  nn = Mul(n, two)  nnn = Add(nn, n)
      wr = Slice(w, zero, n, zero)  wz = Slice(w, n, nn, zero)  wn = Slice(w, nn, nnn, zero)
      rr = Slice(r, zero, n, zero)  rz = Slice(r, n, nn, zero)  rn = Slice(r, nn, nnn, zero)
      w0 = Concat<axis = 0>(wz, wr, wn)  w1 = Unsqueeze(w0, zero)
      r0 = Concat<axis = 0>(rz, rr, rn)  r1 = Unsqueeze(r0, zero)
      h = GRU<hidden_size = 24>(f, w1, r1)
      s = Squeeze(h, one)  y = MatMul(s, last) }"""


def test_gates_between_bounds_that_are_computed_are_of_one_tensor(tmp_path: Path) -> None:
    weights: dict[str, Any] = {"first": (3, 5), "w": (3 * HIDDEN, 5), "r": (3 * HIDDEN, HIDDEN)}
    weights.update(last=(HIDDEN, 2), state=np.zeros((1, 2, HIDDEN), np.float32))
    weights.update(zero=np.array([0]), one=np.array([1]), two=np.array([2]))
    b = model(BOUNDS, weights, checked=False)
    order = np.random.default_rng(0).permutation(HIDDEN)
    rows = np.concatenate([order + gate * HIDDEN for gate in range(3)])
    moves = {"w": (rows,), "r": (rows, order), "last": (order,)}
    a = onnx.ModelProto.FromString(b.SerializeToString())
    for tensor in a.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        for axis, places in enumerate(moves.get(tensor.name, ())):
            values = values.take(places, axis)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    report = fxrebasin.onnx_transform(b, ref=a, out=tmp_path / "out.onnx")
    assert report.distance_before > 0 == report.distance_after
    out = onnx.load(tmp_path / "out.onnx")
    assert [t.SerializeToString() for t in out.graph.initializer] == [
        t.SerializeToString() for t in a.graph.initializer
    ]
