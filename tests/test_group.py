"""Grouping is a function of what was recorded, and leaves that as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fxrebasin.passes.group.group import group
from fxrebasin.passes.propagate.propagate import propagate
from fxrebasin.passes.propagate.propagation import Propagation
from tests.support.structures import STRUCTURES

NAMES = ("grouped_convolution", "multihead_attention", "jumping_knowledge", "cross_attention")


def recorded(propagation: Propagation) -> list[object]:
    """How much there is of everything in the ledger."""
    ledger = propagation.ledger
    counts = (ledger.edges, ledger.members, ledger.pins, ledger.births, ledger.ties, ledger.notes)
    return [ledger.size, *map(len, counts), ledger.find(np.arange(ledger.size)).tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_same_again_and_changes_nothing(name: str) -> None:
    structure = STRUCTURES[name]
    propagation = propagate(structure.build().eval(), structure.inputs(), {})
    before = recorded(propagation)
    first, second = group(propagation), group(propagation)
    assert recorded(propagation) == before
    assert first.classes == second.classes
    assert first.pins == second.pins
    assert first.layout.keys() == second.layout.keys()
    for state, groups in first.layout.items():
        for one, two in zip(groups, second.layout[state], strict=True):
            assert one.axes == two.axes
            for a, b in zip(one.pieces, two.pieces, strict=True):
                assert a.slots == b.slots
                assert np.array_equal(a.positions, b.positions)


def test_what_follows_is_in_the_result() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    propagation = propagate(model, (torch.randn(4, 3),), {})
    found = group(propagation)
    assert found.solved is not propagation
    assert found.solved.ledger.size >= propagation.ledger.size
