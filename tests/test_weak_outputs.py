"""Outputs that are the same for all inputs: a comparison says so where nothing else shows more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import EquivalenceError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
NOTE = "is the same for all inputs, so that other weights may well give it, too"


class Net(nn.Module):
    """A network whose scores are not returned as they are."""

    def __init__(self, last: Callable[[Tensor, Tensor], Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 3), last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.second(torch.tanh(self.first(x))), x)


def winner(scores: Tensor, x: Tensor) -> Tensor:
    """The class that always wins."""
    return (scores + torch.tensor([100.0, 0.0, 0.0])).argmax(-1)


SAME: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a class that always wins": winner,
    "never above": lambda scores, x: scores > 50,
    "rounded to nothing": lambda scores, x: (scores * 0.05).round().to(torch.int8),
    "one answer for all rows": lambda scores, x: (scores > 50).any(),
    "with a mask": lambda scores, x: (winner(scores, x), torch.ones_like(x, dtype=torch.bool)),
}
SHOWN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "classes": lambda scores, x: scores.argmax(-1),
    "scores, and a class that always wins": lambda scores, x: (scores, winner(scores, x)),
    "classes and a mask": lambda scores, x: (scores.argmax(-1), x > 1e6),
    "scores and positions": lambda scores, x: (scores, torch.arange(4).expand(x.shape)),
    "a count over rows": lambda scores, x: (scores > 0).sum(),
    "places": lambda scores, x: (scores > 0.2).nonzero(),
}


@pytest.mark.parametrize("name", SAME)
def test_other_weights_that_pass_get_a_note(name: str) -> None:
    report = fxrebasin.verify(Net(SAME[name]), Net(SAME[name], seed=1), X)
    assert report.passed
    assert [NOTE in note for note in report.notes] == [True] * len(report.outputs)


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_is_noted_where_an_output_shows_the_weights(name: str) -> None:
    report = fxrebasin.verify(Net(SHOWN[name]), Net(SHOWN[name]), X)
    assert report.passed
    assert not any(NOTE in note for note in report.notes)


def test_a_constant_score_shows_no_more() -> None:
    def both(scores: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return scores * 0, winner(scores, x)

    notes = fxrebasin.verify(Net(both), Net(both, seed=1), X).notes
    assert [NOTE in note for note in notes] == [False, True]
    assert "says nothing about the weights" in notes[0]


@pytest.mark.parametrize("name", ["a class that always wins", "never above"])
def test_files_get_the_note(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    fxrebasin.export_onnx(Net(SAME[name]).eval(), path, X)
    report = fxrebasin.verify(Net(SAME[name], seed=1), path, X)
    assert report.passed
    assert any(NOTE in note for note in report.notes)


def test_outputs_that_depend_on_inputs_only_get_a_note() -> None:
    def mask_and_winner(scores: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x > 0, winner(scores, x)

    for last in (lambda scores, x: x * 2, mask_and_winner):
        report = fxrebasin.verify(Net(last), Net(last, seed=1), X)
        assert report.passed
        assert ["no output depends on the parameters" in note for note in report.notes] == [True]


@pytest.mark.parametrize("last", [*SHOWN.values(), lambda scores, x: (x * 2, scores)])
def test_outputs_that_depend_on_the_parameters_get_none(
    last: Callable[[Tensor, Tensor], Any],
) -> None:
    report = fxrebasin.verify(Net(last), Net(last), X)
    assert not any("no output depends" in note for note in report.notes)


def test_a_model_that_computes_nan_by_itself_is_not_to_be_reported() -> None:
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        nets.append(nn.Sequential(*layers).eval())
    nets[1][1].running_var[1] = -1
    with pytest.raises(EquivalenceError, match="computes NaN as it is") as found:
        fxrebasin.match(nets[1], nets[0], X)
    assert "report" not in str(found.value)
    for call in (fxrebasin.transform, fxrebasin.match):
        with pytest.raises(EquivalenceError, match="negative running variance"):
            call(nets[1], nets[0], X)
