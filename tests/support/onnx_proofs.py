"""What has to hold of an ONNX file, whoever wrote it: its group is right, and is recovered."""

from __future__ import annotations

from pathlib import Path

import fxrebasin
from fxrebasin.exporters.verify.equivalence import compare_states
from fxrebasin.importers.onnx.finding import Found
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from fxrebasin.reports.rebasin import RebasinReport
from tests.support.onnx_graphs import planted
from tests.support.randomise import BLIND, TOLERANCE, with_a_fault

SEEDS = (0, 1)


def assert_a_file_is_recovered(path: Path) -> RebasinReport:
    """Random elements change nothing, a wrong one does, and a planted one is found.

    Args:
        path: of a file with random weights; others are written beside it.
    """
    a, out = path.with_name("planted.onnx"), path.with_name("out.onnx")
    found = planted(path, a)
    assert_random_elements_change_nothing(found)
    report = fxrebasin.onnx_transform(path, ref=a, out=out)
    there, here = read(a).parsed.tensors, read(out).parsed.tensors
    assert {n: bytes_of(t) for n, t in here.items()} == {n: bytes_of(t) for n, t in there.items()}
    return report


def assert_random_elements_change_nothing(found: Found) -> None:
    """In float64; one of them with a tensor left as it was has to change the outputs."""
    state = dict(found.module.state_dict())
    names = {"label": "the file"}
    for seed in SEEDS:
        moved = found.symmetry.random(seed).permute_state_dict(state)
        report = compare_states(found.module, state, moved, found.runs.arguments, {}, **names)
        assert report.max_rel <= TOLERANCE, str(report)
    wrong = with_a_fault(found.module, found.symmetry).state_dict()
    control = compare_states(found.module, state, wrong, found.runs.arguments, {}, **names)
    assert not control.passed
    assert control.max_rel > BLIND
