"""Operators that torch's ONNX exporter does not know, rewritten one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.onnx._internal.exporter import _decomp, _registration

from fxrebasin import export_onnx
from fxrebasin.exporters.onnx.capture import capture
from fxrebasin.exporters.onnx.lower import Operators, _translated_names, lower
from fxrebasin.exporters.verify.input_sets import example_set
from fxrebasin.running.operators import writes
from tests.support.small_nets import draw, unsettled


@pytest.fixture(scope="module")
def operators():
    registry = _registration.ONNXRegistry.from_torchlib()
    known = set(_decomp.get_onnx_implemented_overloads(registry))
    return Operators(_decomp.create_onnx_friendly_decomposition_table(known), _translated_names())


class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = act

    def forward(self, x):
        return self.act(x, self.norm(self.conv(x)))


def masked(x, y):
    y.masked_fill_(y > 0.3, -1.0)
    return y.flatten(1).softmax(1)


def added(x, y):
    y += x.mean(1, keepdim=True)
    y.mul_(0.5).relu_()
    return F.adaptive_avg_pool2d(y, (2, 2)), F.adaptive_max_pool2d(y, 1), y.flatten(1)


def dropped(x, y):
    return F.hardswish(F.dropout(y, 0.5, training=False, inplace=True), inplace=True)


def part_of_it(x, y):
    y[:, 1:3].mul_(2.0)
    return y


def seen_before(x, y):
    rows = y.flatten(1)
    y.relu_()
    return rows + 1


def returned_by_dropout(x, y):
    same = F.dropout(y, 0.5, training=False)
    y.relu_()
    return same * 2


def written_input(x, y):
    x.mul_(2.0)
    return x + y.mean()


def view_of_input(x, y):
    x.view(x.shape[0], -1).clamp_(min=0)
    return x + y.mean()


def compared(x, y):
    return y.gt_(0.1).sum((2, 3))


ALONE = [masked, added, dropped]
SHARED = [part_of_it, seen_before, returned_by_dropout, written_input, view_of_input, compared]


def captured(act, size=2):
    model = unsettled(Net(act))
    one = example_set((draw(size, 3, 6, 6),), {})
    return model, capture(model, one, {"x": {0: "batch"}}).program


@pytest.mark.parametrize("act", ALONE)
def test_what_nobody_else_sees_is_rewritten(act, operators):
    model, program = captured(act)
    assert lower(program, operators)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert all(operators.may_stay(target) for target in calls)
    assert not any(isinstance(t, torch._ops.OpOverload) and writes(t) for t in calls)
    results = program.graph.output_node().args[0]
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == [
        node.name for node in results
    ]
    for size in (2, 5):
        x = draw(size, 3, 6, 6, seed=size)
        with torch.no_grad():
            expected = model(x.clone())
        expected = expected if isinstance(expected, tuple) else (expected,)
        for mine, right in zip(program.module()(x), expected, strict=True):
            assert torch.allclose(mine.double(), right.double(), rtol=1e-5, atol=1e-6)
            assert mine.dtype == right.dtype


@pytest.mark.parametrize("act", SHARED)
def test_what_is_seen_otherwise_is_left_to_torch(act, operators):
    _, program = captured(act)
    before = str(program.graph)
    assert not lower(program, operators)
    assert str(program.graph) == before


@pytest.mark.parametrize("act", [added, seen_before, view_of_input])
def test_files_are_right_either_way(act, tmp_path):
    model, _ = captured(act)
    assert export_onnx(model, tmp_path / "net.onnx", draw(2, 3, 6, 6)).passed


def test_one_program_has_few_kinds_of_work(operators, monkeypatch):
    from fxrebasin.exporters.onnx import lower as lowering

    traced = []
    original = lowering._traced
    monkeypatch.setattr(
        lowering, "_traced", lambda node, *rest: traced.append(node) or original(node, *rest)
    )
    layers = [layer for _ in range(5) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())]
    model = unsettled(nn.Sequential(*layers))
    program = capture(model, example_set((draw(3, 4),), {}), {"input": {0: "batch"}}).program
    assert lower(program, operators)
    assert len(traced) == 1
