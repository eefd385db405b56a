"""The classes that are found map everything that was recorded onto itself, unit by unit."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxrebasin.passes.fields.fields import Labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.group.classes import IrregularError
from fxrebasin.passes.group.closure import Moves, check_closed, check_roles
from fxrebasin.passes.group.solving import solve
from fxrebasin.passes.group.structure import derive
from tests.support.recorded import recorded


def ledger_of(births, tables, selections=(), ties=()):
    """A ledger with units made in batches, tuples of labels, selections and columns tied."""
    ledger = Ledger()
    for size in births:
        ledger.fresh(size)
    for selection in selections:
        ledger.remember_units(np.array(selection))
    for pair in ties:
        if ledger.tie(*(ledger.find(side) for side in pair)):
            ledger.ties.append(pair)
    for table in tables:
        columns = [torch.tensor(column) for column in zip(*table, strict=True)]
        ledger.relate(*(Labels(column, (0,), False) for column in columns))
    return ledger


def solved(ledger):
    """Where the classes let units go, and the tables that were recorded."""
    relations = [[column.numpy() for column in met] for met in ledger.relations.values()]
    structure = derive(ledger, relations)
    moves, _ = solve(ledger, structure, lambda _: None)
    return moves, structure


def drawn(moves, known, seed):
    """Where each unit goes under a random element of the group."""
    rng = np.random.default_rng(seed)
    classes = moves.classes
    arrays = [
        rng.permuted(np.tile(np.arange(n), [*(classes.sizes[w] for w in within), 1]), axis=-1)
        for n, within in zip(classes.sizes, classes.within, strict=True)
    ]
    at = {}
    goal = {}
    for unit in range(known):
        color = int(classes.colors[unit])
        if color < 0:
            continue
        place = classes.coordinates[color]
        (row,) = place.of(moves.roots[[unit]])
        moved = tuple(
            int(arrays[column.index][(*(row[w] for w in column.within), row[index])])
            for index, column in enumerate(place.columns)
        )
        key = (color, int(moves.roles[unit]))
        at[key, tuple(row.tolist())] = unit
        goal[unit] = (key, moved)
    return {unit: at[place] for unit, place in goal.items()}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(recorded(), st.integers(0, 5))
def test_elements_of_the_group_preserve_what_was_recorded(found, seed):
    births, tables, selections, ties = found
    ledger = ledger_of(births, tables, selections, ties)
    moves, structure = solved(ledger)
    where = drawn(moves, structure.known, seed)

    def image(label):
        return where.get(label, label) if label >= 0 else label

    for table in [*tables, *(np.stack(pair).T.tolist() for pair in ledger.ties)]:
        rows = {tuple(row) for row in table}
        assert {tuple(map(image, row)) for row in rows} == rows
    starts = np.cumsum([0, *births])
    for units in [*selections, *(range(a, b) for a, b in pairwise(starts.tolist()))]:
        assert {image(unit) for unit in units} == set(units)


def test_units_that_only_meet_each_other_move_alike():
    moves, _ = solved(ledger_of([3, 3], [[[0, 5], [1, 3], [2, 4]]]))
    assert moves.classes.sizes == (3,)
    assert moves.roots[[5, 3, 4]].tolist() == moves.roots[[0, 1, 2]].tolist()


def test_a_unit_that_occurs_with_a_rigid_label_stays():
    moves, _ = solved(ledger_of([4], [[[0, -2], [1, -3], [2, -3], [3, -3]]]))
    assert moves.classes.colors.tolist()[0] == -1
    assert moves.classes.sizes == (3,)


def test_tuples_in_which_two_units_alike_play_different_parts():
    """Units 0 and 1 are tied to 2 and 3, but across: a swap would exchange the two tables' rows."""
    moves, structure = solved(ledger_of([2, 2], [[[0, 2], [1, 3]], [[0, 3], [1, 2]]]))
    assert all(unit == goal for unit, goal in drawn(moves, structure.known, 1).items())


@pytest.fixture
def pairs():
    """Two units of one batch, each tied to one of another."""
    return solved(ledger_of([2, 2], [[[0, 2], [1, 3]]]))


def test_a_table_that_is_not_closed_is_refused(pairs):
    moves, _ = pairs
    check_closed(moves, np.array([[0, 2], [1, 3]]))
    for table in ([[0, 2], [0, 3]], [[0, -2], [1, -3]], [[0, 2]]):
        with pytest.raises(IrregularError, match="irregularly"):
            check_closed(moves, np.array(table))


def test_roles_that_two_units_in_one_place_share_are_refused(pairs):
    moves, structure = pairs
    check_roles(moves, structure.known)
    alike = Moves(moves.classes, moves.roots, np.zeros_like(moves.roles))
    with pytest.raises(IrregularError, match="tied to another unit"):
        check_roles(alike, structure.known)


def test_a_role_that_only_some_of_a_class_play_is_refused(pairs):
    moves, structure = pairs
    torn = Moves(moves.classes, moves.roots, np.arange(moves.roles.size))
    with pytest.raises(IrregularError, match="not all of its class"):
        check_roles(torn, structure.known)
