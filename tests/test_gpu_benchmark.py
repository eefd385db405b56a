"""The script for machines with a GPU runs, as far as it can without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu

pytest.importorskip("transformers")


def test_the_part_that_needs_no_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu.main, ["--device", "cpu", "--small", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if "| cpu |" in line]
    matches = [row.strip("| ").split(" | ") for row in rows if len(row.split("|")) > 5]
    assert [row[0] for row in matches] == ["vit_b_16", "gpt2", "llama 1B"]
    for _, _, _, whole, timed, products, _, assignments, recovered in matches:
        assert recovered == "True"
        assert float(whole) > 0
        assert 0 < float(products) + float(assignments) <= float(timed)


def test_parts_are_timed_only_while_asked_for() -> None:
    with gpu.parts_timed("cpu") as found:
        gpu.gram.add_products(None, torch.ones(2, 2), torch.ones(2, 2))
    assert found["products"] > 0
    assert found["assignments"] == 0
    before = dict(found)
    gpu.gram.add_products(None, torch.ones(2, 2), torch.ones(2, 2))
    assert found == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--device cpu" in result.output
