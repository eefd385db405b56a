"""Axes of an ONNX file are dynamic where that is proved, and said to be fixed where it is not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxrebasin.errors import ExportError, InputError
from fxrebasin.exporters.onnx import export
from fxrebasin.exporters.onnx.axes import chosen_axes, found_axes, parse_dynamic
from fxrebasin.exporters.onnx.export import export_onnx
from fxrebasin.exporters.verify.input_sets import example_set
from tests.support.small_nets import Attention, Residual, draw, unsettled

IDS = torch.tensor([[3, 5, 7, 2], [1, 9, 4, 8]])


def shapes(path) -> dict[str, list]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {port.name: port.shape for port in session.get_inputs()}


def run(path, *inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(np.array(session.run(None, feeds)[0]))


def test_the_length_of_tokens_and_their_mask_is_one_axis(tmp_path):
    model = unsettled(Attention())
    mask = torch.ones_like(IDS)
    report = export_onnx(model, tmp_path / "m.onnx", (IDS, mask))
    assert report.notes == ()
    assert shapes(tmp_path / "m.onnx") == {
        "ids": ["batch", "sequence"],
        "mask": ["batch", "sequence"],
    }
    assert "batch of 3, sequence of 5" in report.inputs
    ids = torch.arange(3 * 11).view(3, 11) % 20
    mask = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long()
    expected = model(ids, mask)
    torch.testing.assert_close(run(tmp_path / "m.onnx", ids, mask), expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_images_and_sounds_is_dynamic(tmp_path):
    report = export_onnx(unsettled(Residual()), tmp_path / "m.onnx", draw(2, 3, 8, 8))
    assert report.notes == ()
    assert shapes(tmp_path / "m.onnx") == {"image": ["batch", 3, "height", "width"]}
    sound = nn.Sequential(nn.Conv1d(1, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    report = export_onnx(unsettled(sound), tmp_path / "s.onnx", draw(2, 1, 40))
    assert shapes(tmp_path / "s.onnx") == {"input": ["batch", 1, "length"]}


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_recurrent_layers_take_any_number_of_steps(layer, tmp_path):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(4, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)[0]

    model = unsettled(Last())
    report = export_onnx(model, tmp_path / "m.onnx", draw(2, 6, 4))
    assert report.notes == ()
    assert shapes(tmp_path / "m.onnx") == {"x": ["batch", "sequence", 4]}
    x = draw(5, 13, 4, seed=3)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert layer(4, 5)(draw(6, 1, 4))[0].abs().sum() > 0  # the layers themselves are as before


def test_axes_can_be_chosen(tmp_path):
    model = unsettled(Attention())
    labels = {"ids": ("rows", None), "mask": {0: "rows"}}
    export_onnx(model, tmp_path / "m.onnx", (IDS, torch.ones_like(IDS)), dynamic=labels)
    assert shapes(tmp_path / "m.onnx") == {"ids": ["rows", 4], "mask": ["rows", 4]}
    export_onnx(model, tmp_path / "n.onnx", IDS, dynamic={"ids": {-1: "steps"}})
    assert shapes(tmp_path / "n.onnx") == {"ids": [2, "steps"]}
    export_onnx(model, tmp_path / "o.onnx", IDS, dynamic={})
    assert shapes(tmp_path / "o.onnx") == {"ids": [2, 4]}


class Positions(nn.Module):
    """Adds a table of positions, which fixes the length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.table)


def test_an_axis_that_was_asked_for_and_cannot_be_is_an_error_with_the_guard(tmp_path):
    with pytest.raises(ExportError, match=r"dynamic: steps \(axis 1 of x\) is fixed at 4.*Eq\("):
        export_onnx(
            unsettled(Positions()), tmp_path / "m.onnx", draw(2, 4, 8), dynamic={"x": {1: "steps"}}
        )
    assert list(tmp_path.iterdir()) == []


class Patches(nn.Module):
    """Patches of 4 x 4, each with a position of its own; what is left of an image is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 6, 4, stride=4)
        self.positions = nn.Parameter(
            torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.cut(image).flatten(2).transpose(1, 2) + self.positions


def test_a_rest_that_no_patch_holds_is_no_other_size(tmp_path):
    model = unsettled(Patches())
    assert model(draw(2, 3, 17, 19)).shape == (2, 16, 6)
    report = export_onnx(model, tmp_path / "m.onnx", draw(2, 3, 16, 16))
    assert report.passed
    assert shapes(tmp_path / "m.onnx") == {"image": ["batch", 3, 16, 16]}


class Viewing(nn.Module):
    """Its number of rows comes from a number that was written down."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y if x.shape[0] == 2 else y * 2


def test_a_batch_that_is_fixed_is_noted_with_the_guard(tmp_path):
    report = export_onnx(unsettled(Viewing()), tmp_path / "m.onnx", draw(2, 8))
    assert report.notes[0].startswith("the batch is fixed at 2: PyTorch relies on Eq(batch, 2)")
    assert "test_onnx_axes.py" in report.notes[0]
    assert shapes(tmp_path / "m.onnx") == {"x": [2, 8]}


class Long(nn.Module):
    """Does something else with more than four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y.tanh() if x.shape[1] > 4 else y


def test_a_model_that_chooses_by_size_gets_no_file_that_is_wrong_for_some_sizes(tmp_path):
    model = unsettled(Long())
    for steps in (4, 5, 9):
        report = export_onnx(model, tmp_path / "m.onnx", draw(2, steps, 8), overwrite=True)
        assert shapes(tmp_path / "m.onnx")["x"] == ["batch", steps, 8]
        assert any("sequence (axis 1 of x) is fixed" in note for note in report.notes)
        assert any("PyTorch relies on" in note for note in report.notes)


class Halves(nn.Module):
    """Takes even sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.linear(x).reshape(x.shape[0], 2, -1, 8).unbind(1)
        return F.relu(first) + second


def test_sizes_that_the_model_refuses_need_no_proof(tmp_path):
    model = unsettled(Halves())
    report = export_onnx(model, tmp_path / "m.onnx", draw(2, 4, 8))
    assert shapes(tmp_path / "m.onnx") == {"x": ["batch", "sequence", 8]}
    assert any("sequence of 8" in one for one in report.inputs)
    x = draw(3, 10, 8, seed=2)
    torch.testing.assert_close(run(tmp_path / "m.onnx", x), model(x), rtol=1e-4, atol=1e-5)


class Windows(nn.Module):
    """Layers in windows of images that are padded to whole ones, each of other windows."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in sizes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image).permute(0, 2, 3, 1)
        for size, layer in zip(self.sizes, self.layers, strict=True):
            rows, height, width, units = x.shape
            x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
            down, across = x.shape[1] // size, x.shape[2] // size
            x = x.view(rows, down, size, across, size, units).transpose(2, 3)
            x = layer(x).relu() - x.mean((3, 4), keepdim=True)
            x = x.transpose(2, 3).reshape(rows, down * size, across * size, units)
            x = x[:, ::2, ::2]
        return x.mean((1, 2))


def test_sizes_whose_formulas_grow_beyond_a_bound_are_fixed(tmp_path, monkeypatch):
    model, image = unsettled(Windows(3, 5)), draw(2, 3, 20, 24)
    few = export_onnx(model, tmp_path / "open.onnx", image)
    assert few.notes == ()
    assert shapes(tmp_path / "open.onnx") == {"image": ["batch", 3, "height", "width"]}
    monkeypatch.setattr(export, "MOST_PARTS", 60)
    for name in ("one.onnx", "two.onnx"):
        report = export_onnx(model, tmp_path / name, image)
        assert shapes(tmp_path / name) == {"image": ["batch", 3, 20, 24]}
        assert len(report.notes) == 2
        for note, fixed in zip(report.notes, ("height (axis 2", "width (axis 3"), strict=True):
            assert note.startswith(f"{fixed} of image) is fixed at ")
            assert "formulas of sizes grow beyond 60 parts" in note
            assert f"{__file__}:" in note
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    export_onnx(model, tmp_path / "asked.onnx", image, dynamic={"image": {0: "n", 2: "h", 3: "w"}})
    other = draw(3, 3, 31, 17)
    found = run(tmp_path / "asked.onnx", other)
    torch.testing.assert_close(found, model(other), rtol=1e-4, atol=1e-5)


def test_many_windows_of_images_are_exported_in_time(tmp_path):
    """With open sizes PyTorch has taken more than half an hour for this network."""
    model, image = unsettled(Windows(3, 5, 4, 7, 3, 5, 4, 7)), draw(2, 3, 64, 64)
    report = export_onnx(model, tmp_path / "m.onnx", image)
    assert shapes(tmp_path / "m.onnx") == {"image": ["batch", 3, 64, 64]}
    assert any("formulas of sizes grow beyond 1000 parts" in note for note in report.notes)


def test_a_model_that_catches_all_faults_gets_no_file_of_its_second_way(tmp_path, monkeypatch):
    class Careful(Windows):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            try:
                return super().forward(image)
            except Exception:  # noqa: BLE001
                return image.mean((1, 2, 3), keepdim=True)[:, 0, 0].expand(-1, 4)

    monkeypatch.setattr(export, "MOST_PARTS", 60)
    model, image = unsettled(Careful(3, 5)), draw(2, 3, 20, 24)
    export_onnx(model, tmp_path / "m.onnx", image)
    assert shapes(tmp_path / "m.onnx") == {"image": ["batch", 3, 20, 24]}
    torch.testing.assert_close(run(tmp_path / "m.onnx", image), model(image), rtol=1e-4, atol=1e-5)


def test_lengths_of_two_inputs_are_told_apart():
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left.sum(1) + right.sum(1)

    tensors = {"left": draw(2, 5), "right": draw(2, 5, seed=1)}
    example = example_set(tuple(tensors.values()), {})
    assert found_axes(Two(), example, tensors, None) == {
        "left": {0: "batch", 1: "length"},
        "right": {0: "batch", 1: "right_length"},
    }


def test_the_form_of_the_command_line_is_read_or_refused():
    assert parse_dynamic(["ids=batch, steps", "x=,,h"]) == {
        "ids": {0: "batch", 1: "steps"},
        "x": {2: "h"},
    }
    for text in ("ids", "=batch", "ids=", "ids=,"):
        with pytest.raises(InputError, match="does not say which axes are dynamic"):
            parse_dynamic([text])
    with pytest.raises(InputError, match="given twice"):
        parse_dynamic(["ids=batch", "ids=rows"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"y": {0: "batch"}}, "there is no input 'y'; the inputs are x"),
        ({"x": {2: "batch"}}, r"x is float32\[2, 3\] and has no axis 2"),
        ({"x": "batch"}, "expected labels by axis"),
        ({"x": {0: "a b"}}, "expected a name"),
        ({"x": {0: "n", 1: "n"}}, r"'n' is 2 \(axis 0 of x\) and 3 \(axis 1 of x\)"),
    ],
)
def test_axes_that_do_not_fit_the_inputs_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        chosen_axes(labels, {"x": draw(2, 3)})
