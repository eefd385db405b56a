"""Relations that were made small allow the same permutations."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxrebasin.passes.fields.fields import Labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.reshaping import _tell_apart
from fxrebasin.passes.fields.rows import determines, thinned
from fxrebasin.passes.fields.together import _determines
from fxrebasin.passes.group.relations import compact, with_blocks
from fxrebasin.running.on_meta import on_meta

SIZES = (2, 3, 2)
UNITS = 4


@st.composite
def relations(draw):
    """Fields over some axes of a small tensor, of which one at least is free."""
    fields = []
    for number in range(draw(st.integers(1, 4))):
        shape = [size if draw(st.booleans()) else 1 for size in SIZES]
        free = number == 0 or draw(st.booleans())
        label = st.integers(0, UNITS - 1) if free else st.integers(-6, -2)
        count = int(np.prod(shape))
        values = draw(st.lists(label, min_size=count, max_size=count))
        fields.append(np.array(values, dtype=np.int64).reshape(shape))
    return fields


def preserved_by(relation):
    """The permutations of the units that map a relation onto itself."""
    table = {tuple(row) for row in np.stack(relation, axis=1).tolist()}
    found = set()
    for move in permutations(range(UNITS)):
        image = {tuple(move[label] if label >= 0 else label for label in row) for row in table}
        if image == table:
            found.add(move)
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(relations())
def test_compact_relations_allow_the_same_permutations(fields):
    full = [field.reshape(-1) for field in np.broadcast_arrays(*fields)]
    allowed = set.intersection(*(preserved_by(part) for part in compact(fields)))
    assert allowed == preserved_by(full)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(relations())
def test_thinned_relations_have_the_same_tuples_and_no_two_slices_alike(fields):
    thin = thinned(fields)
    assert rows_of(thin) == rows_of(fields)
    assert [item.shape for item in thinned(thin)] == [item.shape for item in thin]


def test_positions_that_all_fields_repeat_go_before_anything_is_broadcast():
    """Of 48 heads of two images and 4,000 tokens squared, 12 heads remain."""
    heads = np.tile(np.arange(12), 4).reshape(48, 1, 1)
    rows = -2 - np.repeat([0, 1], 2000).reshape(1, 4000, 1)
    thin = thinned([heads, rows, rows.transpose(0, 2, 1)])
    assert [item.shape for item in thin] == [(12, 1, 1), (1, 2, 1), (1, 1, 2)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-3, 6), st.integers(-2, 2)), max_size=6),
    st.sampled_from([1, -1, 10**6]),
)
def test_numbers_that_determine_others_are_told_from_those_that_do_not(pairs, scale):
    one, two = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    assert determines(one * scale, two) == (len(set(pairs)) == len({first for first, _ in pairs}))


def test_large_labels_are_looked_at_as_a_whole_where_a_sample_shows_nothing():
    labels = torch.arange(300_000).view(3, 100_000) % 100_000  # each three times
    others = (labels * 7).clone()
    ledger = Ledger()
    assert _determines(ledger, labels, others)
    others[2, 99_998] += 1  # between positions of the sample
    assert not _determines(ledger, labels, others)
    assert not _determines(ledger, labels, torch.arange(3).view(3, 1))
    assert _determines(ledger, labels, torch.arange(100_000).view(1, -1) % 50_000)


@pytest.mark.parametrize("place", [(49_998, 1), (99_998, 0), (3, 2)])
def test_one_label_among_many_alike_shows_that_others_are_not_determined(place):
    tokens = (torch.arange(100_000) % 2).view(-1, 1)
    labels = 3 * tokens + torch.arange(3)
    ledger = Ledger()
    assert _determines(ledger, labels, torch.arange(3).view(1, 3))
    assert _determines(ledger, labels, tokens)
    odd = labels.clone()
    odd[place] = odd[place[0], place[1] - 1]  # now one label is at two places
    assert not _determines(ledger, odd, torch.arange(3).view(1, 3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(relations(), st.integers(1, 30))
def test_positions_are_told_apart_where_no_two_have_the_same_labels(fields, repeats):
    long = [np.repeat(item, repeats, axis=2) if item.shape[2] > 1 else item for item in fields]
    if repeats % 2:
        long.append(-100 - np.arange(2 * repeats).reshape(1, 1, -1))
    grid = np.broadcast_shapes(*(item.shape for item in long))
    rigid = [Labels(torch.from_numpy(item), (), injective=False) for item in long]
    expected = len(rows_of(long)) == np.prod(grid)
    assert _tell_apart(rigid, [axis for axis in range(3) if grid[axis] > 1], grid) == expected


@st.composite
def grids(draw):
    """A field over a grid of distinct or repeated rows, and fields along its first axis."""
    rows = draw(st.lists(st.sampled_from([(0, 1), (2, 3), (1, 0), (1, 2)]), min_size=3, max_size=3))
    label = st.integers(4, 6) if draw(st.booleans()) else st.integers(-4, -2)
    first = draw(st.lists(label, min_size=3, max_size=3, unique=draw(st.booleans())))
    return [np.array(rows), np.array(first).reshape(3, 1)]


def rows_of(fields):
    return set(map(tuple, np.stack([f.ravel() for f in np.broadcast_arrays(*fields)], 1).tolist()))


def moved(units, move):
    return tuple(move[label] if label >= 0 else label for label in units)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(grids())
def test_blocks_allow_the_same_permutations(fields):
    """A permutation of the units is allowed if some permutation of the blocks goes with it."""
    ledger = Ledger()
    ledger.fresh(7)
    found = with_blocks(ledger, fields)
    table, part = rows_of(fields), rows_of(found)
    edges = set().union(*(rows_of([edge.children, edge.parents]) for edge in ledger.edges))
    blocks = list(range(7, ledger.size))
    for low in permutations(range(4)):
        for high in permutations(range(4, 7)):
            move = [*low, *high]
            whole = {moved(row, move) for row in table} == table
            parts = any(
                {moved(row, [*move, *order]) for row in part} == part
                and {moved(row, [*move, *order]) for row in edges} == edges
                for order in permutations(blocks)
            )
            assert whole == parts


def test_the_inputs_of_a_grouped_convolution_are_blocks():
    ledger = Ledger()
    ledger.fresh(12)
    inputs = np.arange(8).reshape(2, 4).repeat(2, axis=0)
    found = with_blocks(ledger, [np.arange(8, 12).reshape(4, 1), inputs])
    assert [item.tolist() for item in found] == [[[8], [9], [10], [11]], [[12], [12], [13], [13]]]


def test_rigid_labels_are_summed_up_before_they_are_broadcast():
    """Of 16 heads on 4 windows, 64 positions and 64 others, the 16 heads remain."""
    heads = np.tile(np.arange(16), 4).reshape(64, 1, 1)
    windows = -2 - np.repeat(np.arange(4), 16).reshape(64, 1, 1)
    rows = windows * 64 - np.arange(64).reshape(1, 64, 1)
    (found,) = compact([heads, rows, rows.transpose(0, 2, 1)])
    assert [column.size for column in found] == [16]


def test_results_on_meta_are_those_of_the_operator_however_often_it_is_asked():
    weight = torch.randn(6, 4).t()
    for x in (torch.randn(5, 6).t().contiguous().t(), torch.randn(5, 6), torch.randn(1, 6)):
        for _ in range(2):
            for func, args in (
                (torch.ops.aten.mm.default, (x, weight.t())),
                (torch.ops.aten.add.Tensor, (x, x[:1])),
                (torch.ops.aten.clone.default, (x.t(),)),
                (torch.ops.aten.mul.Scalar, (x, 2)),
                (torch.ops.aten.var_mean.correction, (x, [1])),
            ):
                real, found = func(*args), on_meta(func, args, {})
                for one, two in zip(
                    [real] if isinstance(real, torch.Tensor) else real,
                    [found] if isinstance(found, torch.Tensor) else found,
                    strict=True,
                ):
                    assert two.is_meta
                    assert (two.shape, two.stride(), two.dtype) == (
                        one.shape,
                        one.stride(),
                        one.dtype,
                    )


def test_two_results_on_meta_share_no_memory():
    x = torch.empty(3, device="meta")
    first, second = (on_meta(torch.ops.aten.relu.default, (x,), {}) for _ in "ab")
    assert first is not second
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata


def test_views_on_meta_stay_views():
    x = torch.empty(3, 4, device="meta")
    for _ in range(2):
        view = on_meta(torch.ops.aten.t.default, (x,), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
