"""The matching benchmark: the plain port, the floor, the choice of classes, tables and command."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fxrebasin
from benchmarks import matching
from benchmarks.matching import Settings, main, measure
from benchmarks.support.matching_models import OWN, build, draw
from benchmarks.support.matching_ours import Pair, recovered, shared_classes
from benchmarks.support.matching_table import Row, write_tables
from benchmarks.support.plain_rebasin import NotPlainError, match_plainly, objective, specify

IMAGES = torch.zeros(2, 6)


def net():
    first, second = nn.Linear(6, 30), nn.Linear(30, 20)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(20, 3))


@pytest.fixture
def pair():
    model = net()
    states = [draw(model, IMAGES, seed) for seed in range(2)]
    return Pair(fxrebasin.analyze(model, IMAGES), *states)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(OWN, "small", (net, (6,)))


def test_the_plain_port_finds_what_was_planted(pair):
    symmetry, names = pair.symmetry, pair.symmetry.parameters
    planted = symmetry.random(seed=1)
    moved = planted.permute_state_dict(dict(pair.state_a))
    specification = specify(symmetry.classes, symmetry.layout, names)
    assert specification.axes["0.weight[0]"] == (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
    plain = match_plainly(specification, pair.state_a, moved, seed=0)
    wanted = planted.inverse().arrays
    assert all(np.array_equal(plain.arrays[name], array) for name, array in wanted.items())
    square = sum(float(pair.state_a[name].square().sum()) for name in names)
    found = objective(specification, plain.arrays, pair.state_a, moved, names)
    assert found == pytest.approx(square)


def test_the_plain_port_goes_by_the_same_objective(pair):
    symmetry, names = pair.symmetry, pair.symmetry.parameters
    specification = specify(symmetry.classes, symmetry.layout, names)
    plain = match_plainly(specification, pair.state_a, pair.state_b, seed=0)
    permutation = fxrebasin.Permutation(symmetry.classes, plain.arrays, symmetry.layout)
    moved = permutation.permute_state_dict(dict(pair.state_b))
    expected = sum(float((pair.state_a[name] * moved[name]).sum()) for name in names)
    found = objective(specification, plain.arrays, pair.state_a, pair.state_b, names)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found <= pair.match().objective_after * (1 + 1e-6)


def test_the_plain_port_refuses_heads():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 5, 8))
    with pytest.raises(NotPlainError):
        specify(symmetry.classes, symmetry.layout, symmetry.parameters)


def test_the_floor_counts_and_changes_nothing(pair):
    before = pair.match().permutation
    floor = pair.floor()
    assert floor.products >= 5
    assert floor.assignments >= 2
    assert floor.seconds > 0
    assert pair.match().permutation == before


def test_classes_that_are_shared_have_an_axis_in_common(pair):
    peer = [{"size": 30, "axes": [("2.weight", 1)]}, {"size": 1, "axes": [("2.weight", 0)]}]
    assert shared_classes(pair.symmetry, peer) == ["0.weight[0]"]


def test_units_are_recovered_from_a_copy_but_not_from_noise(pair):
    assert recovered(pair, 0.0, seed=0) == 1
    assert recovered(pair, 100.0, seed=0) < 0.5


def test_figures_of_a_pair(small):
    row = measure("small", 0, Settings(repeats=1, plain=False, extras=False))
    assert (row.parameters, row.classes) == (893, 2)
    assert min(row.ours_seconds, row.match_seconds, row.floor_seconds) > 0
    assert row.rebasin_seconds is None


def test_tables_have_means_and_ratios(tmp_path):
    rows = [
        Row("net", seed, ours_seconds=2.0, shared_seconds=1.0, rebasin_seconds=10.0 + 2 * seed)
        for seed in range(2)
    ]
    write_tables(tmp_path, "two", rows, "wall time")
    with (tmp_path / "two.csv").open() as file:
        assert [line["rebasin_seconds"] for line in csv.DictReader(file)] == ["10.0", "12.0"]
    text = (tmp_path / "two.md").read_text()
    assert "| net | 2 | 11.0 | 5.5 | – | – | – |" in text


def test_a_run_without_peers(tmp_path, small):
    arguments = ["--models", "small", "--seeds", "1", "--repeats", "1", "--no-peers"]
    threads = torch.get_num_threads()
    result = CliRunner().invoke(
        main, [*arguments, "--no-extras", "--threads", str(threads), "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"selected.csv", "selected.md"}


def test_unknown_networks_are_refused(tmp_path):
    result = CliRunner().invoke(main, ["--models", "mlp,nothing", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "nothing" in result.output


def test_the_networks_are_as_wide_as_they_say():
    sizes = {name: sum(p.numel() for p in build(name)[0].parameters()) for name in OWN}
    assert sizes == {"mlp": 1_195_018, "vgg16_cifar": 15_253_578, "resnet22x2": 1_080_090}
    assert set(OWN) < set(matching.DEFAULT_MODELS)
