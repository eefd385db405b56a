"""Following the units of a class takes no more at the end of a deep network than at its begin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.passes.kinds import walk
from fxrebasin.passes.kinds.marks import Value
from tests.support.randomise import randomise


def most_marks(layers: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most marks on one tensor in a transformer with norms behind its sums."""
    counts = []
    meet = walk.Step.meet

    def counted(self: walk.Step, *args: Any) -> Value:
        found = meet(self, *args)
        counts.append(len(found))
        return found

    monkeypatch.setattr(walk.Step, "meet", counted)
    torch.manual_seed(0)
    options: dict[str, Any] = {"dim_feedforward": 12, "batch_first": True}
    model = randomise(nn.Transformer(8, 2, layers, layers, **options).eval())
    inputs = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    symmetry = fxrebasin.analyze(model, inputs, symmetry="all")
    assert symmetry.groups is not None
    monkeypatch.undo()
    return max(counts)


def test_marks_that_say_the_same_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_marks(1, monkeypatch) == most_marks(4, monkeypatch)
