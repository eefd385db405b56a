"""Results that are in the repository: pages, tables and pictures hold together."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image

from benchmarks.experiments import peers, symmetries
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.figures import Dots, Drawing, Panel, Series
from benchmarks.experiments.page import assemble
from benchmarks.experiments.report import Report
from benchmarks.experiments.verdicts import Row
from fxrebasin.colours import Meaning

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
EXPERIMENTS = sorted(path.parent.name for path in RESULTS.glob("*/*.md"))
PICTURES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("*/*.png"))


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def rows_of_peers() -> list[Row]:
    figures = ("barrier", "midpoint_loss", "midpoint_accuracy", "seconds")
    return [
        Row(
            r["setting"],
            int(r["seed"]),
            r["method"],
            r["treatment"],
            *(float(r[figure]) for figure in figures),
        )
        for r in table("peers/barriers.csv")
    ]


def rows_of_symmetries() -> list[symmetries.Row]:
    names = ("network", "pair", "way")
    return [
        symmetries.Row(*(r[name] for name in names), float(r["barrier"]), 0.0, 0.0, 0.0)
        for r in table("symmetries/barriers.csv")
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_table_and_picture_is_on_the_page_of_its_experiment(name: str) -> None:
    page = (RESULTS / name / f"{name}.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+)\)", page))
    there = {path.name for path in (RESULTS / name).iterdir() if path.suffix in (".csv", ".png")}
    assert linked == there
    assert {path.stem for path in (RESULTS / name).glob("*.json")} == {
        file.removesuffix(".png") for file in there if file.endswith(".png")
    }


def test_the_page_of_results_is_what_the_experiments_wrote(tmp_path: Path) -> None:
    order = [name for name in main.commands if name not in ("page", "pictures")]
    assert not assemble(RESULTS, tmp_path / "docs" / "results.md", order)
    own = (ROOT / "docs" / "results.md").read_text()
    again = (tmp_path / "docs" / "results.md").read_text()
    paths = re.compile(r"\]\([^)]*/benchmarks/")
    assert paths.sub("](/benchmarks/", again) == paths.sub("](/benchmarks/", own)
    assert len(own.splitlines()) < 440
    for path in re.findall(r"\]\((\.\./[^)#]+)\)", own):
        assert (ROOT / "docs" / path).exists(), path


def test_drawings_and_excerpts_are_those_of_the_tables(tmp_path: Path) -> None:
    drawn = {
        "peers/barriers.json": peers.drawing_of(rows_of_peers()),
        "symmetries/barriers.json": symmetries.drawing_of(
            rows_of_symmetries(), "Symmetries beyond permutation"
        ),
    }
    for name, drawing in drawn.items():
        assert (RESULTS / name).read_bytes() == drawing.stored()
    report = Report(tmp_path, "peers", "", "", "")
    peers.summary_table(report, rows_of_peers())
    assert "\n\n".join(report._blocks) in (RESULTS / "peers" / "peers.md").read_text()


@pytest.mark.parametrize("name", PICTURES)
def test_lines_in_drawings_are_those_of_the_tables(name: str) -> None:
    stored = (RESULTS / name).with_suffix(".json").read_bytes()
    drawing = Drawing.read(stored)
    assert drawing.stored() == stored
    if Path(name).stem != "lines":
        return
    every = {float(row["loss"]) for row in table(f"{Path(name).parent.name}/points.csv")}
    shown = [
        value
        for panel in drawing.panels
        if isinstance(panel, Panel) and "loss" in panel.y
        for series in panel.series
        for values in series.values.values()
        for value in values
    ]
    assert len(shown) > 50
    assert set(shown) <= every


@pytest.mark.parametrize("name", ["gpt/lines.png", "peers/barriers.png"])
def test_pictures_are_drawn_again_without_the_run(name: str) -> None:
    drawing = Drawing.read((RESULTS / name).with_suffix(".json").read_bytes())
    again = image.imread(io.BytesIO(drawing.rendered()))
    kept = image.imread(RESULTS / name)
    assert again.shape == kept.shape
    assert float(np.abs(again - kept).mean()) < 0.01
    assert kept.shape[1] < 1200  # so that letters can be read at the width of a page


def test_the_command_draws_other_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "net"
    folder.mkdir(parents=True)
    series = (
        Series("A to B", {0.0: [1.0], 1.0: [2.0]}, Meaning.UNTOUCHED),
        Series("A to rebased B", {0.0: [1.0], 1.0: [1.5]}, Meaning.REBASED),
        Series("something else", {0.0: [1.0], 1.0: [1.2]}),
    )
    drawing = Drawing([Panel("one", "x", "y", series)], 1, "title")
    (folder / "lines.json").write_bytes(drawing.stored())
    given = ["pictures", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        result = CliRunner().invoke(main, [*given, "--kind", kind])
        assert result.exit_code == 0, result.output
        content = (tmp_path / "out" / "net" / f"lines.{kind}").read_bytes()
        assert content.startswith(start)
        assert content == drawing.rendered(kind)
    text = drawing.rendered("svg").decode().lower()
    for colour in (Meaning.UNTOUCHED.value, Meaning.REBASED.value, "#332288"):
        assert f"stroke: {colour.lower()}" in text


def test_the_first_of_a_meaning_is_emphasised() -> None:
    meanings = {"weight": Meaning.REBASED, "other": Meaning.REBASED, "rebasin": Meaning.PEER}
    values = {"net": {"weight": [0.1, 0.3], "other": [0.2], "rebasin": [0.4]}}
    text = Drawing([Dots("one", "x", values, meanings)], 1, "t").rendered("svg").decode().lower()
    own, peer = Meaning.REBASED.value.lower(), Meaning.PEER.value.lower()
    assert f"fill: {own}" in text
    assert "fill: #ffffff; stroke" in text
    assert f"fill: {peer}" in text
