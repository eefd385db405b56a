"""The benchmark of loops that write their results, and how much work their analysis is."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from click.testing import CliRunner

import fxrebasin
from benchmarks import write_loops
from benchmarks.write_loops import INPUTS, LOOPS, WIDTH, Loop, Row, exponent
from tests.support.randomise import log10_factorial as f


def calls_of(run: Callable[..., torch.Tensor], steps: int) -> int:
    """How many functions are called for the analysis of a loop: the same in every run."""
    model, x = Loop(run).eval(), torch.randn(2, steps, INPUTS)
    fxrebasin.analyze(model, x)  # caches are filled
    count = [0]

    def notice(frame: FrameType, event: str, argument: object) -> None:
        count[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        fxrebasin.analyze(model, x)
    finally:
        sys.setprofile(before)
    return count[0]


@pytest.mark.parametrize("run", LOOPS, ids=lambda run: run.__name__)
def test_the_work_grows_as_the_steps(run: Callable[..., torch.Tensor]) -> None:
    short, middle, long = (calls_of(run, steps) for steps in (8, 16, 32))
    assert long - middle <= 2.1 * (middle - short)


def test_the_command_writes_its_tables(tmp_path: Path) -> None:
    options = ["--steps", "3,6", "--rounds", "1", "--out", str(tmp_path)]
    done = CliRunner().invoke(write_loops.main, options)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "write_loops.csv").read_text().splitlines()))
    assert [(row["loop"], row["steps"]) for row in rows] == [
        (run.__name__, steps) for run in LOOPS for steps in ("3", "6")
    ]
    classes = {"each_by_itself": 2, "recurrent": 1, "reads_back": 1, "weighted": 2}
    for row in rows:
        assert float(row["log10_order"]) == pytest.approx(classes[row["loop"]] * f(WIDTH))
    page = (tmp_path / "write_loops.md").read_text()
    assert "benchmarks.write_loops --steps 3,6 --rounds 1`" in page
    assert page == done.output.removesuffix("\n")


def test_the_exponent_is_that_of_the_growth() -> None:
    rows = [Row("loop", steps, 1, 1.0, 0.01 * steps**2) for steps in (64, 128, 512)]
    assert exponent(rows) == pytest.approx(2)
