"""Each stage of grouping by itself, on tables written by hand, so that a failure says where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fxrebasin.passes.fields.constraints import Edge
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.rows import distinct
from fxrebasin.passes.group.classes import Column, IrregularError, classify
from fxrebasin.passes.group.closure import Moves
from fxrebasin.passes.group.coloring import color, marks, roles
from fxrebasin.passes.group.laying import lay_out
from fxrebasin.passes.group.state_fields import StateField
from fxrebasin.passes.group.structure import Structure, derive

NOTHING = np.zeros(0, np.int64)


def ledger_of(*births: int) -> Ledger:
    """Units made in batches: those of one batch are alike until something tells them apart."""
    ledger = Ledger()
    for size in births:
        ledger.fresh(size)
    return ledger


def derived(ledger: Ledger, *tables: Sequence[tuple[int, ...]]) -> Structure:
    return derive(ledger, [[np.array(column) for column in zip(*t, strict=True)] for t in tables])


def colors_of(ledger: Ledger, structure: Structure, pinned: Sequence[int] = ()) -> list[int]:
    """A number for the colour of each unit, in order of the first unit that has it."""
    found = color(ledger, structure, marks(ledger), np.array(pinned, np.int64))
    first = {value: index for index, value in reversed(list(enumerate(found.tolist())))}
    order = sorted(first.values())
    return [order.index(first[value]) for value in found.tolist()]


# Deriving: who moves with whom, and inside of whom ---------------------------------------------


def test_units_that_only_occur_with_each_other_are_tied() -> None:
    ledger = ledger_of(3, 3)
    structure = derived(ledger, [(0, 3), (1, 5), (2, 4)])
    assert ledger.find(np.arange(6)).tolist() == [0, 1, 2, 0, 2, 1]
    assert structure.edges == []
    assert structure.known == 6


def test_a_unit_that_occurs_with_one_other_moves_inside_it() -> None:
    ledger = ledger_of(2, 4)
    (edge,) = derived(ledger, [(0, 2), (0, 3), (1, 4), (1, 5)]).edges
    assert edge.children.tolist() == [2, 3, 4, 5]
    assert edge.parents.tolist() == [0, 0, 1, 1]


def test_connected_parts_of_other_pairs_are_blocks() -> None:
    ledger = ledger_of(4, 4)
    pairs = [(a, 4 + b) for a in range(4) for b in range(4) if a // 2 == b // 2]
    one, two = derived(ledger, pairs).edges
    assert one.children.tolist() == [0, 1, 2, 3]
    assert two.children.tolist() == [4, 5, 6, 7]
    assert one.parents.tolist() == two.parents.tolist() == [8, 8, 9, 9]


def test_rigid_labels_tie_nothing() -> None:
    ledger = ledger_of(3)
    structure = derived(ledger, [(0, -2), (1, -3), (2, -2)])
    assert ledger.find(np.arange(3)).tolist() == [0, 1, 2]
    assert structure.edges == []


# Colours: who has the same role ------------------------------------------------------------------


def test_units_of_one_birth_have_one_colour_and_those_of_another_a_different_one() -> None:
    ledger = ledger_of(3, 2)
    assert colors_of(ledger, derived(ledger)) == [0, 0, 0, 1, 1]


def test_pinned_units_have_colours_of_their_own() -> None:
    ledger = ledger_of(4)
    assert colors_of(ledger, derived(ledger), [1, 2]) == [0, 1, 2, 0]


def test_what_units_occur_with_tells_them_apart() -> None:
    ledger = ledger_of(4)
    assert colors_of(ledger, derived(ledger, [(0, -2), (1, -3), (2, -2), (3, -3)])) == [0, 1, 0, 1]


def test_the_end_of_a_chain_tells_all_of_it_apart() -> None:
    ledger = ledger_of(5)
    chain = derived(ledger, [(0, 1), (1, 2), (2, 3), (3, 4)])
    assert len(set(colors_of(ledger, chain))) == 5


def test_a_ring_tells_nothing_apart() -> None:
    ledger = ledger_of(5)
    ring = Structure(5, [], [np.array([(k, (k + 1) % 5) for k in range(5)])], [])
    assert colors_of(ledger, ring) == [0] * 5


def test_a_selection_tells_its_units_from_the_others() -> None:
    ledger = ledger_of(4)
    ledger.remember_units(np.array([1, 3]))
    assert colors_of(ledger, derived(ledger)) == [0, 1, 0, 1]


def test_roles_are_about_units_before_they_were_tied() -> None:
    ledger = ledger_of(4)
    structure = derived(ledger, [(0, -2), (1, -2), (2, -3), (3, -3)])
    first, second = np.array([0, 1]), np.array([2, 3])
    ledger.tie(first, second)
    found = roles(ledger, structure).tolist()
    assert found[0] == found[1] != found[2] == found[3]


# Classes: coordinates --------------------------------------------------------------------------


def classified(ledger: Ledger, structure: Structure) -> Moves:
    tags = marks(ledger)
    roots = ledger.compress()
    colors = color(ledger, structure, tags, NOTHING)
    classes = classify(structure, colors, roots)
    return Moves(classes, roots, np.unique(tags, return_inverse=True)[1].reshape(-1))


def test_units_inside_others_are_a_class_in_each_copy() -> None:
    ledger = ledger_of(2, 6)
    nested = derived(ledger, [(k // 3, 2 + k) for k in range(6)])
    classes = classified(ledger, nested).classes
    assert classes.sizes == (2, 3)
    assert classes.within == ((), (0,))
    assert [classes.count(k) for k in range(2)] == [1, 2]
    inner = classes.coordinates[int(classes.colors[2])]
    assert inner.columns == (Column(0, 2), Column(1, 3, (0,)))
    assert inner.rows.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_the_only_unit_of_a_colour_inside_others_follows_them() -> None:
    ledger = ledger_of(3, 3)
    structure = Structure(6, [], [], [Edge(np.array([3, 4, 5]), np.array([0, 1, 2]))])
    classes = classified(ledger, structure).classes
    assert classes.sizes == (3,)
    assert classes.coordinates[int(classes.colors[4])].columns == (Column(0, 3),)


def test_a_grid_with_a_hole_is_irregular() -> None:
    ledger = ledger_of(2, 5)
    nested = derived(ledger, [(0, 2), (0, 3), (0, 4), (1, 5), (1, 6)])
    same = np.zeros(ledger.size, np.uint64) + np.array([1, 1, *[2] * 5], np.uint64)
    with pytest.raises(IrregularError, match="irregular grid") as error:
        classify(nested, same, ledger.compress())
    assert set(distinct(error.value.units).tolist()) <= set(range(7))


# Laying: positions of state tensors --------------------------------------------------------------


def field(axes: tuple[int, ...], values: object) -> StateField:
    return StateField(axes, np.array(values, np.int64), (), "", 0)


def test_a_class_lies_where_its_units_are() -> None:
    ledger = ledger_of(3)
    moves = classified(ledger, derived(ledger))
    found = lay_out({"w": (3, 2)}, moves, {"w": [field((0,), [2, 0, 1])]})
    ((columns, positions),) = found["w"][0].pieces
    assert found["w"][0].axes == (0,)
    assert columns == (Column(0, 3),)
    assert positions.tolist() == [1, 2, 0]


def test_positions_with_other_rigid_labels_are_pieces_of_their_own() -> None:
    ledger = ledger_of(2)
    moves = classified(ledger, derived(ledger))
    fields = [field((0,), [0, 1, 0, 1]), field((0,), [-2, -2, -3, -3])]
    (unnamed,) = lay_out({"w": (4,)}, moves, {"w": fields})["w"]
    (piece,) = unnamed.pieces
    assert piece[0] == (Column(0, 2), None)
    assert piece[1].tolist() == [[2, 0], [3, 1]]


def test_units_that_are_elsewhere_along_another_axis_move_along_both() -> None:
    """The columns of a matrix, of which the second wraps around by one row."""
    ledger = ledger_of(2, 2)
    ledger.tie(np.array([0, 1]), np.array([2, 3]))
    moves = classified(ledger, derived(ledger))
    straight = lay_out({"w": (2, 2)}, moves, {"w": [field((0, 1), [[0, 1], [2, 3]])]})["w"]
    wrapped = lay_out({"w": (2, 2)}, moves, {"w": [field((0, 1), [[0, 3], [2, 1]])]})["w"]
    assert [item.axes for item in straight] == [(1,)]
    assert [item.axes for item in wrapped] == [(0, 1)]
    ((_, positions),) = wrapped[0].pieces
    assert positions.tolist() == [[0, 2], [3, 1]]


def test_two_positions_that_are_tied_and_alike_cannot_be_laid() -> None:
    ledger = ledger_of(2, 2)
    ledger.tie(np.array([0, 1]), np.array([2, 3]))
    moves = classified(ledger, derived(ledger))
    alike = Moves(moves.classes, moves.roots, np.zeros(4, np.int64))
    with pytest.raises(IrregularError, match="tied"):
        lay_out({"w": (4,)}, alike, {"w": [field((0,), [0, 1, 2, 3])]})
