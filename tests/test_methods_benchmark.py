"""The methods benchmark: every method is measured on every pair, and the tables say so."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import methods
from fxrebasin.demo.networks import DigitsMLP
from fxrebasin.demo.training import Recipe
from fxrebasin.passes.match.methods import METHODS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "BATCH", 1347)
    small = replace(methods.NARROW, build=lambda: DigitsMLP(width=6), recipe=Recipe(epochs=1))
    monkeypatch.setattr(methods, "NARROW", small)


def test_every_method_is_measured_on_every_pair(tmp_path: Path) -> None:
    arguments = ["--kinds", "narrow", "--seeds", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(methods.main, arguments)
    assert result.exit_code == 0, result.output
    with (tmp_path / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    titles = ["no matching", *(title for title, _, _ in methods.METHODS)]
    assert [(row["seed"], row["method"]) for row in rows] == [(s, t) for s in "0" for t in titles]
    plain, weight, *_ = (float(row["objective"]) for row in rows)
    assert weight > plain
    assert all(float(row["distance"]) > 0 for row in rows)
    page = (tmp_path / "methods.md").read_text()
    assert all(f"| narrow | {title} | 1 |" in page for title in titles)


def test_all_methods_are_in_the_benchmark() -> None:
    assert {method for _, method, _ in methods.METHODS} == set(METHODS)


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(methods.main, ["--kinds", "cnn", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "no kind 'cnn'; there are mlp, resnet, narrow" in result.output
