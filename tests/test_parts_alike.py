"""Parts of which the same was recorded are solved once, with the result of solving all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxrebasin.passes.fields.fields import Labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.group import solving
from fxrebasin.passes.group.classes import IrregularError
from fxrebasin.passes.group.closure import Moves
from fxrebasin.passes.group.copies import Everywhere
from fxrebasin.passes.group.group import group
from fxrebasin.passes.group.parts import entries_of, parts_of
from fxrebasin.passes.group.solving import solved, solved_in_full
from fxrebasin.passes.propagate.propagate import propagate
from tests.support.recorded import recorded


@st.composite
def of_a_part(draw):
    """What was recorded of one part: sizes of batches, tables, ties, selections, pins."""
    births, tables, selections, ties = draw(recorded())
    unit = st.integers(0, sum(births) - 1)
    pins = draw(st.lists(st.lists(unit, min_size=1, max_size=1), max_size=1))
    return births, tables, ties, selections, pins


def ledger_of(parts, in_turn):
    """A ledger of several parts, one after the other, or by turns."""
    ledger = Ledger()
    numbers = [[] for _ in parts]
    for turn in range(max(len(part[0]) for part in parts)) if in_turn else [None]:
        for number, (births, *_) in zip(numbers, parts, strict=True):
            for size in births[turn : turn + 1] if in_turn else births:
                number.extend(ledger.fresh(size).tolist())
    number = [np.array(own) for own in numbers]

    def moved(labels, of):
        labels = np.array(labels)
        return np.where(labels >= 0, of[np.maximum(labels, 0)], labels)

    for of, (_, tables, ties, selections, pins) in zip(number, parts, strict=True):
        for pair in ties:
            one, two = (moved(side, of) for side in pair)
            if ledger.tie(ledger.find(one), ledger.find(two)):
                ledger.ties.append((one, two))
        for selection in selections:
            ledger.remember_units(moved(selection, of))
        for pin in pins:
            ledger.pin(moved(pin, of), "")
        for table in tables:
            columns = [torch.from_numpy(moved(column, of)) for column in zip(*table, strict=True)]
            ledger.relate(*(Labels(column, (0,), False) for column in columns))
    return ledger


def found_of(ledger, solve):
    """All that is found: what is tied, which units move where, what is used if some units are."""
    ledger = ledger.fork()
    met = [[column.numpy() for column in columns] for columns in ledger.relations.values()]
    found = solve(ledger, met, [], lambda _: {})
    motion, roots = found.motion, ledger.compress()
    used = np.zeros(ledger.size, np.bool_)
    used[roots[:1]] = used[roots[-1:]] = True
    return {
        "births": ledger.births,
        "roots": roots.tolist(),
        "sizes": found.classes.sizes,
        "within": found.classes.within,
        "kinds": motion.kinds,
        "codes": motion.codes.tolist(),
        "starts": motion.starts.tolist(),
        "pins": sorted({int(unit) for pin in ledger.pins for unit in ledger.find(pin.units)}),
        "used": found.spread(used).tolist(),
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(of_a_part(), of_a_part(), st.integers(2, 4), st.booleans())
def test_solving_once_finds_what_solving_all_does(part, other, count, in_turn):
    ledger = ledger_of([part, other, *[part] * (count - 1)], in_turn)
    assert found_of(ledger, solved) == found_of(ledger, solved_in_full)


def groups_of(ledger):
    met = [[column.numpy() for column in columns] for columns in ledger.relations.values()]
    return [len(parts) for parts in parts_of(ledger, entries_of(ledger, met, []))]


BLOCKS = ([2, 4], [[[0, 2], [0, 3], [1, 4], [1, 5]]], [], [[0]], [])


def test_parts_alike_are_recognised():
    assert groups_of(ledger_of([BLOCKS] * 3, False)) == [3]
    assert groups_of(ledger_of([BLOCKS] * 3, True)) == [3]


@pytest.mark.parametrize(
    "other",
    [
        ([2, 5], *BLOCKS[1:]),
        ([2, 4], [[[0, 2], [0, 4], [1, 3], [1, 5]]], *BLOCKS[2:]),
        ([2, 4], [[[0, 2], [0, 3], [1, 4], [-2, 5]]], *BLOCKS[2:]),
        ([2, 4], [*BLOCKS[1], *BLOCKS[1]], *BLOCKS[2:]),
        ([2, 4], BLOCKS[1], [], [[1]], []),
        ([2, 4], BLOCKS[1], [], [], []),
        ([2, 4], BLOCKS[1], [], [[0]], [[0]]),
    ],
)
def test_parts_that_differ_in_anything_are_not_alike(other):
    ledger = ledger_of([BLOCKS, other, BLOCKS], False)
    assert sorted(groups_of(ledger)) == [1, 2]


def test_a_part_whose_units_are_tied_otherwise_is_not_alike():
    straight = ([2, 2], [], [(np.array([0, 1]), np.array([2, 3]))], [], [])
    across = ([2, 2], [], [(np.array([0, 1]), np.array([3, 2]))], [], [])
    assert groups_of(ledger_of([straight, across, straight], False)) == [2, 1]


def test_parts_that_do_not_fit_onto_tensors_are_solved_in_full():
    ledger = ledger_of([BLOCKS] * 3, False)
    calls = []

    def lay(moves):
        calls.append(moves)
        if len(calls) == 1:
            raise IrregularError(np.array([0]), "no place")
        return {}

    solved(ledger, [[c.numpy() for c in met] for met in ledger.relations.values()], [], lay)
    assert [type(moves) for moves in calls] == [Everywhere, Moves]
    assert not ledger.pins


class Layers(nn.Module):
    """Layers of which three are alike; the hidden units of the fourth stay."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(6, 8) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(8, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, (up, norm, down) in enumerate(zip(self.up, self.norms, self.down, strict=True)):
            hidden = norm(up(x)).relu()
            if index == 2:
                hidden = hidden.cumsum(1)
            x = x + down(hidden)
        return x


def test_layers_have_the_groups_that_they_would_have_alone(monkeypatch):
    propagation = propagate(Layers().eval(), (torch.randn(3, 6),), {})
    once = group(propagation)
    monkeypatch.setattr("fxrebasin.passes.group.group.solved", solving.solved_in_full)
    full = group(propagation)
    assert once.classes == full.classes
    assert once.pins == full.pins
    assert len(once.classes) == 6
    for state, groups in full.layout.items():
        for one, two in zip(once.layout[state], groups, strict=True):
            assert one.axes == two.axes
            for a, b in zip(one.pieces, two.pieces, strict=True):
                assert a.slots == b.slots
                assert np.array_equal(a.positions, b.positions)
