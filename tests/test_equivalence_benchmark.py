"""The equivalence benchmark: its figures, tables and exit code; and that it notices faults."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torchvision import models

import fxrebasin
from benchmarks import equivalence
from benchmarks.equivalence import Settings, main, measure
from benchmarks.support.equivalence_models import QUICK, SETS, Subject, build
from benchmarks.support.equivalence_process import measured_apart
from benchmarks.support.equivalence_table import Row, console_table, read_rows, write_tables
from benchmarks.support.randomise import randomise
from fxrebasin.errors import ExportError
from tests.support.measurements import dying, measuring, never_ending

SMALL = Settings(size=64)


def run(*arguments):
    return CliRunner().invoke(main, ["--limit=0", *map(str, arguments)])


@pytest.fixture(scope="module")
def row():
    return measure("squeezenet1_1", SMALL)


def test_the_figures_of_a_model(row):
    assert row.passed, row.reason
    assert row.parameters == 1_235_496
    assert row.classes > 20
    assert row.log10_order > 1000
    assert 0.9 < row.coverage <= 1
    assert row.float64_error <= 1e-10
    assert row.control_error > 1e-6
    assert 0 < row.onnx_error <= row.tolerance
    assert row.smallest_tolerance <= row.tolerance
    assert row.file_log10_order == pytest.approx(row.log10_order)
    assert row.file_error <= 1e-10
    assert row.file_recovered == 1
    for seconds in ("build", "analyse", "apply", "float64", "onnx", "file"):
        assert getattr(row, f"{seconds}_seconds") > 0


def test_rows_are_read_as_they_were_written(tmp_path, row):
    broken = Row("broken", reason="a | b\nc")
    write_tables(tmp_path, "two", [row, broken])
    assert read_rows(tmp_path / "two.csv") == [row, broken]
    assert read_rows(tmp_path / "none.csv") == []


def test_resume_measures_what_has_not_passed(tmp_path, row, monkeypatch):
    measured = []
    monkeypatch.setattr(
        equivalence, "measure", lambda name, _: measured.append(name) or replace(row, model=name)
    )
    write_tables(tmp_path, "selected", [row, Row("alexnet", reason="it failed")])
    models = "--models=alexnet,squeezenet1_1,vgg11"
    assert run(models, "--out", tmp_path).exit_code == 0
    assert measured == ["vgg11", "alexnet"]
    names = [found.model for found in read_rows(tmp_path / "selected.csv")]
    assert names == ["alexnet", "squeezenet1_1", "vgg11"]
    assert run(models, "--out", tmp_path, "--anew").exit_code == 0
    assert len(measured) == 5


def test_the_tables_are_complete(tmp_path, row):
    broken = Row("broken", reason="a | b\nc")
    write_tables(tmp_path, "two", [row, broken])
    with (tmp_path / "two.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["log10_order"]) == row.log10_order
    assert second["parameters"] == ""
    text = (tmp_path / "two.md").read_text()
    assert "1 of 2 pass" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert "1,235,496" in lines[2]
    assert lines[2].endswith("| pass |")
    assert lines[3].endswith("| a \\| b c |")


def test_a_run_goes_on_after_a_failure_and_exits_with_1(tmp_path, monkeypatch):
    original = equivalence.compare_float64

    def fail_once(*args, **kwargs):
        monkeypatch.setattr(equivalence, "compare_float64", original)
        raise ExportError("cannot be compared")

    monkeypatch.setattr(equivalence, "compare_float64", fail_once)
    names = "squeezenet1_1,squeezenet1_0"
    result = run("--models", names, "--out", tmp_path, "--size", 64, "--skip-onnx")
    assert result.exit_code == 1
    assert "squeezenet1_1: ExportError: cannot be compared" in result.output
    assert "1 of 2 pass" in result.output
    with (tmp_path / "selected.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["log10_order"]
    assert first["reason"] == "ExportError: cannot be compared"
    assert second["reason"] == ""


def test_a_good_run_exits_with_0(tmp_path):
    result = run("--models", "squeezenet1_1", "--out", tmp_path, "--size", 64, "--skip-onnx")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"selected.csv", "selected.md"}


def test_a_wrong_permutation_fails(monkeypatch):
    def wrong(model, permutation, *inputs):
        permuted = permutation.permute_state_dict(model.state_dict())
        return equivalence._with_a_fault(model, permuted, "features.0.weight")

    monkeypatch.setattr(fxrebasin, "apply", wrong)
    row = measure("squeezenet1_1", SMALL)
    assert not row.passed
    assert "EquivalenceError" in row.reason


def test_a_comparison_that_sees_nothing_fails(monkeypatch):
    monkeypatch.setattr(equivalence, "_with_a_fault", lambda model, permuted, victim: model)
    row = measure("squeezenet1_1", Settings(size=64, onnx=False))
    assert "the comparison is blind" in row.reason


def test_the_control_leaves_a_tied_tensor_under_all_its_names():
    subject = build("transformers:gpt2", 64, seed=0)
    symmetry = fxrebasin.analyze(subject.model, example_kwargs=subject.kwargs)
    permuted = symmetry.random(0).permute_state_dict(subject.model.state_dict())
    wrong = equivalence._with_a_fault(subject.model, permuted, "transformer.wte.weight")
    report = fxrebasin.verify(subject.model, wrong, example_kwargs=subject.kwargs)
    assert report.max_rel > equivalence.LEAST_CONTROL_ERROR


def test_unknown_models_are_refused(tmp_path):
    result = run("--models", "resnet18,resnet19", "--out", tmp_path)
    assert result.exit_code == 2
    assert "resnet19" in result.output
    assert not list(tmp_path.iterdir())


def test_the_sets_of_models():
    known = models.list_models(module=models)
    assert len(QUICK) == 12
    assert set(QUICK) <= set(known)
    names = {label: choose() for label, choose in SETS.items()}
    assert sorted(names["torchvision"]) == known
    assert names["torchvision"][0] == "squeezenet1_1"
    assert len(names["timm"]) == 98
    assert names["timm"][0] == "timm:test_convnext"
    assert {"transformers:gpt2", "transformers:vit"} <= set(names["transformers"])
    assert equivalence._choose("timm") == (names["timm"], "timm")


def test_models_get_images_that_they_take():
    small, own = (build(name, 64, seed=0) for name in ("timm:test_resnet", "timm:pit_ti_224"))
    assert (small.size, own.size) == (64, 224)
    assert own.args[0].shape == (2, 3, 224, 224)
    words = build("transformers:gpt2", 64, seed=0)
    assert (words.size, words.args) == (None, ())
    assert set(words.kwargs) == {"input_ids", "attention_mask"}


def test_what_is_stopped_keeps_what_there_was():
    empty = Row("endless")
    row = measured_apart(never_ending, 1, empty)
    assert row == Row("endless", classes=3, reason="stopped after 1 seconds of processor time")
    assert measured_apart(dying, 60, empty).reason == "its process ended with 3"
    assert measured_apart(measuring, 60, empty) == Row("endless", reason="")


def test_randomised_state_leaves_no_two_units_alike(generator):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(16)
    )
    model[1].momentum = 0.2
    images = torch.randn(4, 3, 4, 4, generator=generator)
    before = torch.get_rng_state()
    randomise(model, (images,), seed=0)
    assert torch.get_rng_state().equal(before)
    for name, tensor in model.state_dict().items():
        if tensor.dim():
            units = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
            assert len(units.unique(dim=0)) == len(tensor), name
    assert model[1].momentum == 0.2
    assert not model.training
    assert model[1].running_var.min() > 0


class _Keeping(nn.Module):
    """Keeps a bias for each offset once it has been gathered, as timm's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 6), nn.Linear(6, 2)
        self.bias, self._kept = nn.Parameter(torch.randn(6)), None

    def train(self, mode: bool = True) -> nn.Module:
        self._kept = None if mode else self._kept
        return super().train(mode)

    def forward(self, x):
        if self._kept is None:
            self._kept = self.bias[torch.arange(6)].detach()
        return self.outer(torch.tanh(self.inner(x) + self._kept))


def test_a_copy_with_other_weights_forgets_what_was_made_of_the_former_ones():
    model, other, x = _Keeping().eval(), _Keeping().eval(), torch.randn(4, 3)
    before, wanted = model(x), other(x)
    torch.testing.assert_close(equivalence._with_weights(model, other.state_dict())(x), wanted)
    torch.testing.assert_close(model(x), before)


def test_the_control_goes_on_to_a_tensor_that_matters():
    class WithIdle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.net = nn.Linear(3, 6), _Keeping()

        def forward(self, x):
            return self.net(x) + 0 * self.idle(x).sum()

    model, x = WithIdle().double().eval(), torch.randn(4, 3, dtype=torch.float64)
    permutation = fxrebasin.analyze(model, x).random(0)
    permuted = permutation.permute_state_dict(model.state_dict())
    assert not permuted["idle.weight"].equal(model.idle.weight)
    idle = equivalence._with_a_fault(model, permuted, "idle.weight")
    torch.testing.assert_close(idle(x), model(x))
    subject = Subject(model, (x,), {})
    assert equivalence._error_of_faults(subject, permutation) > equivalence.LEAST_CONTROL_ERROR


def test_tables_for_people_are_short_and_the_file_has_everything(tmp_path):
    names = " ".join(f"layer.{i}.weight" for i in range(300))
    row = Row("m", log10_order=3.0, classes=1, file_larger=names, reason="it differs " * 99)
    write_tables(tmp_path, "all", [row])
    assert read_rows(tmp_path / "all.csv") == [row]
    (line,) = [t for t in (tmp_path / "all.md").read_text().splitlines() if t.startswith("| m ")]
    assert "layer.0.weight, layer.1.weight and 298 more" in line
    assert len(line) < 500
    assert len(console_table([row]).columns) < 10
