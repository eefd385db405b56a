"""The benchmark of what passes through memory measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxrebasin
from benchmarks import streaming
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import make_schedule
from fxrebasin.streaming.stored import Stored

pytest.importorskip("transformers")
SMALL = (24, 40, 4, 6, 2, 90)


def test_a_deep_model_is_planned_from_the_symmetry_of_two_layers() -> None:
    model = streaming.model_of(SMALL, 4)
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 8, dtype=torch.long))
    sides = {
        name: (Stored(tuple(p.shape), torch.bfloat16),) * 2 for name, p in model.named_parameters()
    }
    free = tuple(c.name for c in symmetry.classes)
    expected = make_schedule(FileProblem(symmetry.classes, symmetry.layout, sides, free))
    found = make_schedule(streaming.deep_problem(SMALL))
    assert found.streams == expected.streams
    assert found.bytes_first == expected.bytes_first
    assert found.peak == expected.peak
    assert [{*v.reads} for v in found.visits] == [{*v.reads} for v in expected.visits]


def test_a_pair_is_one_model_in_two_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PAIR", SMALL)
    streaming.write_pair(tmp_path, 2)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 5
    assert streaming.same(tmp_path / "a", tmp_path / "a")
    assert not streaming.same(tmp_path / "a", tmp_path / "b")
    assert streaming.seconds_of_files(tmp_path) > 0
    assert not (tmp_path / "copy").exists()
