"""What the benchmarks say of stages and of memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks.support import large_models
from benchmarks.support.large_models import markdown, measured, stages_from
from benchmarks.support.peak_memory import peaks_of


def test_stages_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> large_models.Subject:
        net = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 2))
        return net, {"input": torch.randn(2, 3)}

    monkeypatch.setattr(large_models, "SUBJECTS", {"small": build})
    threads = torch.get_num_threads()
    try:
        row = measured("small")
    finally:
        torch.set_num_threads(threads)
    assert (row.classes, round(10**row.log10_order)) == (1, 5040)
    assert 0 < row.propagation + row.grouping <= row.whole
    assert 0 < row.programs <= row.peak
    assert stages_from({name: str(value) for name, value in asdict(row).items()}) == row
    assert "| small | 0.00e9 | 1 | 3.702 |" in markdown([row])


def test_peaks_of_a_process() -> None:
    code = "x = bytearray(b'1') * 2**26; import time; time.sleep(0.5)"
    most, without_files = peaks_of(subprocess.Popen([sys.executable, "-c", code]))
    assert 2**26 < without_files <= most < 2**28
