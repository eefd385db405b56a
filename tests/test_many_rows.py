"""Two models whose relation nobody has proved are compared on many rows, and what these show."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.exporters.verify.activity import Activity
from fxrebasin.exporters.verify.effort import Effort, portions
from tests.support.small_nets import draw, unsettled

X = draw(2, 4)


def perceptron() -> nn.Sequential:
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)]
    model = unsettled(nn.Sequential(*layers))
    with torch.no_grad():
        model[0].bias += 1
        model[2].bias += 1
    return model


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_a_unit_that_few_rows_show_is_compared(share: float) -> None:
    model, rows = perceptron(), draw(4000, 4)
    with torch.no_grad():
        values = model[0](rows)[:, 3].sort()
        model[0].bias[3] -= values.values[int(len(rows) * (1 - share))]
    quiet = rows[values.indices[1000:1002]]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight[:, 3] += 1000
    report = fxrebasin.verify(model, other, quiet)
    assert not report.passed
    assert report.rows >= 256
    assert str(report).startswith("NOT equivalent (pytorch-float64; inputs: example, redrawn batc")


def test_the_verdict_says_on_how_many_rows() -> None:
    model = perceptron()
    report = fxrebasin.verify(model, copy.deepcopy(model), X)
    assert str(report).startswith("equivalent on 257 rows (pytorch-float64; inputs: example, ")
    assert report.to_dict()["rows"] == 257
    assert (
        fxrebasin.transform(model, ref=perceptron(), example_inputs=X)
        .meta["fxrebasin"]
        .equivalence.rows
        == 4
    )


def test_units_that_are_active_on_no_row_are_named() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].bias[torch.tensor([1, 5])] = -1e6
        model[2].bias[4] = -1e9
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight[:, 5] += 1000
    report = fxrebasin.verify(model, other, X)
    assert report.passed
    assert report.notes == (
        "3 units were active on no row (1, 5 on axis 1 of 2.weight, 4 on axis 1 of 4.weight), so "
        "that nothing is known about the weights that they are multiplied with",
    )
    whole = perceptron()
    assert fxrebasin.verify(whole, copy.deepcopy(whole), X).notes == ()


class Everywhere(nn.Module):
    """Weights on either side of products, in stacks, and in grouped and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(draw(5, 4))
        self.stack = nn.Parameter(draw(2, 4, 5))
        self.shared = nn.Parameter(draw(4, 5))
        self.grouped = nn.Conv1d(4, 6, 1, groups=2)
        self.deep = nn.Conv1d(4, 4, 1, groups=4)
        self.back = nn.ConvTranspose1d(4, 6, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        steps = x[:, :, None]
        stacked = torch.bmm(x.expand(2, *x.shape), self.stack)
        shared = torch.bmm(x.expand(2, *x.shape), self.shared.expand(2, 4, 5))
        sides = [self.left @ x.T, stacked, shared]
        return [*sides, self.grouped(steps), self.deep(steps), self.back(steps)]


def test_units_are_found_wherever_they_meet_weights() -> None:
    model = Everywhere()
    x = draw(3, 4)
    x[:, 2] = 0
    activity = Activity(dict(model.named_parameters()))
    with torch.no_grad(), activity:
        model(x)
    assert activity.silent() == {
        "left": (1, [2]),
        "stack": (1, [2]),
        "shared": (0, [2]),
        "grouped.weight": (1, [0]),  # the first of the second group
        "deep.weight": (0, [2]),
        "back.weight": (0, [2]),
    }
    with torch.no_grad(), activity:
        model(draw(3, 4))
    assert activity.silent() == {}


def test_rows_are_fewer_where_they_take_long_and_calls_where_batches_are_fixed() -> None:
    effort = Effort()
    effort.operations, effort.operators, effort.largest = 2e10, 100, 1000
    assert portions(effort, 2, 256).rows == 24  # of 2.5e11 operations
    assert portions(effort, 2, 256).calls == 1
    assert portions(effort, 2, 256, of_size=2).calls == 12
    effort.operations, effort.largest = 1e6, 1 << 24
    assert portions(effort, 2, 256).rows == 4  # of so large tensors
    assert portions(effort, 2, 256).calls == 64


class Slow(nn.Module):
    """A chain of products of large matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def test_fewer_rows_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxrebasin.exporters.verify.effort._BUDGET", 1e7)
    model = unsettled(Slow())
    report = fxrebasin.verify(model, copy.deepcopy(model), X)
    assert report.passed
    assert report.rows < 256
    assert report.notes[0] == (
        f"only {report.rows} rows were compared, not 256: a row of this model takes long"
    )


class OnlySmall(Slow):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4:
            raise ValueError("four rows at most")
        return super().forward(x)


def test_a_model_that_takes_no_more_rows_is_told_apart() -> None:
    model = unsettled(OnlySmall())
    report = fxrebasin.verify(model, copy.deepcopy(model), X)
    assert report.passed
    assert report.rows == 5
    assert "only 5 rows were compared, not 256: the model refuses others" in report.notes


@pytest.mark.parametrize("call", ["verify", "transform", "analyze", "apply", "match", "export"])
def test_inputs_without_rows_are_refused_everywhere(call: str, tmp_path: Path) -> None:
    model, empty = perceptron(), torch.zeros(0, 4)
    calls: dict[str, Any] = {
        "verify": lambda: fxrebasin.verify(model, model, empty),
        "transform": lambda: fxrebasin.transform(model, ref=model, example_inputs=empty),
        "match": lambda: fxrebasin.match(model, ref=model, example_inputs=empty),
        "analyze": lambda: fxrebasin.analyze(model, empty),
        "apply": lambda: fxrebasin.apply(model, fxrebasin.analyze(model, X).identity(), empty),
        "export": lambda: fxrebasin.export_onnx(model, tmp_path / "a.onnx", empty),
    }
    with pytest.raises(InputError, match=r"example_inputs\[0\] is float32\[0, 4\]: axis 0 has si"):
        calls[call]()


class NoColumns(nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.linear, self.columns = nn.Linear(4, 3), columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)[:, : self.columns]


def test_an_output_without_columns_fails() -> None:
    model = NoColumns(0)
    report = fxrebasin.verify(model, copy.deepcopy(model), X)
    assert not report.passed
    assert report.failures == (
        "nothing was compared: output has the shape (2, 0), without elements",
    )
    assert report.smallest_tolerance == float("inf")


# --- what a file stores ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, path = perceptron(), tmp_path_factory.mktemp("stored") / "net.onnx"
    fxrebasin.export_onnx(model, path, X)
    return model, path


def stored(path: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a file in which functions were applied to initializers by name."""
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        name = tensor.name.replace(".", "_")
        if name in changes:
            changed = numpy_helper.from_array(changes[name](numpy_helper.to_array(tensor).copy()))
            changed.name = tensor.name
            tensor.CopyFrom(changed)
    onnx.save(graph, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_the_numbers_of_a_file_are_those_of_the_model(exported: tuple[nn.Module, Path]) -> None:
    report = fxrebasin.verify(*exported, X)
    assert report.passed
    assert report.notes == ("tensors of the state in the file: 6 bit for bit those of the model",)


def test_a_number_that_no_row_shows_fails(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """A bias that is lost in rounding: every output is the same."""
    model, path = exported

    def tiny(array: Any) -> Any:
        array[0] = np.nextafter(array[0], np.float32(9))
        return array

    report = fxrebasin.verify(model, stored(path, tmp_path, **{"2_bias": tiny}), X)
    assert all(output.passed for output in report.outputs)
    assert not report.passed
    assert report.failures == ("2.bias in the file differs from the model's in 1 of 6 numbers",)


def test_a_rebased_file_has_the_numbers_in_another_order(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, _ = exported
    moved = fxrebasin.apply(model, fxrebasin.analyze(model, X).random(3), X)
    fxrebasin.export_onnx(moved, tmp_path / "moved.onnx", X)
    report = fxrebasin.verify(model, tmp_path / "moved.onnx", X)
    assert report.passed
    assert report.notes == (
        "tensors of the state in the file: 1 bit for bit those of the model, 5 the model's numbers "
        "in another order (0.weight, 0.bias, 2.weight and 2 more)",
    )


def test_scaled_and_renamed_tensors_are_told(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model, path = exported
    double = {"0_weight": lambda a: a * 2, "0_bias": lambda a: a * 2, "2_weight": lambda a: a / 2}
    changed = stored(path, tmp_path, **double)
    graph = onnx.load(changed)
    weight = next(t for t in graph.graph.initializer if t.name == "4.weight")
    (node,) = [n for n in graph.graph.node if "4.weight" in n.input]
    transposed = numpy_helper.from_array(
        np.ascontiguousarray(numpy_helper.to_array(weight).T), "turned"
    )
    weight.CopyFrom(transposed)
    node.input[list(node.input).index("4.weight")] = "turned"
    for attribute in node.attribute:
        if attribute.name == "transB":
            attribute.i = 0
    onnx.save(graph, changed)
    report = fxrebasin.verify(model, changed, X)
    assert report.passed
    assert report.notes == (
        "tensors of the state in the file: 3 bit for bit those of the model, 3 other numbers, as "
        "folding a normalisation makes them (0.weight, 0.bias, 2.weight)",
    )
