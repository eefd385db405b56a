"""Tables of which a call reads a part: the rest moves along, so that longer inputs are right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import applied_exactly
from fxrebasin.counted import counted
from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
from fxrebasin.layout import AxisGroup, Slab
from fxrebasin.streaming.matching import FileMatch
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import make_schedule
from fxrebasin.streaming.stored import Stored
from tests.support.onnx_graphs import model
from tests.support.randomise import BLIND, TOLERANCE, difference, outputs, permuted, with_a_fault

ROWS, WIDTH = 9, 6


class Positions(nn.Module):
    """Tokens with positions from a table, as it is looked up in `choose`."""

    def __init__(self, choose: Callable[[Tensor, int], Tensor], *shape: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, WIDTH)
        self.table = nn.Parameter(torch.randn(*shape, WIDTH))
        self.last = nn.Linear(WIDTH, 3)
        self.choose = choose

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.last((self.tokens(ids) + self.choose(self.table, ids.shape[1])).relu())
        return found


CHOICES = {
    "a slice": (lambda table, n: table[:n], (ROWS,)),
    "a slice behind an axis": (lambda table, n: table[:, 1 : n + 1], (1, ROWS)),
    "indices": (lambda table, n: table[torch.arange(n) + 2], (ROWS,)),
    "indices backwards": (lambda table, n: table[torch.arange(n).flip(0)], (ROWS,)),
    "every second row": (lambda table, n: table[: 2 * n : 2], (2 * ROWS,)),
    "a corner of a grid": (lambda table, n: table[:2, :n].mean(0), (4, ROWS)),
    "one of two tables": (lambda table, n: table[1, :n], (2, ROWS)),
}


@pytest.mark.parametrize(("choose", "shape"), CHOICES.values(), ids=CHOICES)
def test_rows_that_were_not_read_move_along(choose, shape):
    torch.manual_seed(0)
    net = Positions(choose, *shape).double()
    symmetry = fxrebasin.analyze(net, torch.randint(0, 11, (2, 4)))
    longer = [torch.randint(0, 11, (3, 7))]
    expected = outputs(net, longer, {})
    for seed in range(3):
        found = outputs(permuted(net, symmetry.random(seed)), longer, {})
        assert difference(expected, found) <= TOLERANCE
    wrong = with_a_fault(net, symmetry)
    assert difference(expected, outputs(wrong, longer, {})) > BLIND
    assert [group.axes for group in symmetry.layout["table"]] == [(len(shape),)]


class Halves(nn.Module):
    """One tensor with the positions of two streams that have nothing to do with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Embedding(11, WIDTH), nn.Embedding(11, WIDTH)
        self.table = nn.Parameter(torch.randn(2 * ROWS, WIDTH))
        self.last = nn.Linear(2 * WIDTH, 3)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        parts = [self.one(ids) + self.table[:n], self.two(ids) + self.table[ROWS : ROWS + n]]
        found: Tensor = self.last(torch.cat(parts, -1).relu())
        return found


def test_rows_that_may_belong_to_either_stay():
    torch.manual_seed(0)
    net = Halves().double()
    ids = torch.randint(0, 11, (2, 4))
    symmetry = fxrebasin.analyze(net, ids)
    assert len(symmetry.classes) == 2
    element = symmetry.random(1)
    moved = permuted(net, element)
    expected = outputs(net, [ids], {})
    assert difference(expected, outputs(moved, [ids], {})) <= TOLERANCE
    still = [row for at in (0, ROWS) for row in range(at + 4, at + ROWS)]
    assert torch.equal(moved.table[still], net.table[still])


class Shown(nn.Module):
    """The rest of the table is an output, so that it may not move."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last((self.first(x) + self.table[:4]).relu()), self.table[6:] + x.sum()


def test_rows_that_are_an_output_stay():
    torch.manual_seed(0)
    net = Shown().double()
    given = [torch.randn(4, 3, dtype=torch.float64)]
    symmetry = fxrebasin.analyze(net, tuple(given))
    for seed in range(3):
        moved = permuted(net, symmetry.random(seed))
        assert difference(outputs(net, given, {}), outputs(moved, given, {})) <= TOLERANCE
        assert torch.equal(moved.table[6:], net.table[6:])


LOOKED_UP = """ g (int64[batch,steps] ids) => (float[batch,steps,3] y) {
    none = Constant<value = int64 {0}>()  one = Constant<value = int64 {1}>()
    two = Constant<value = int64 {2}>()
    sizes = Shape(ids)  steps = Gather(sizes, one)  count = Range(none, steps, one)
    places = Add(count, two)  at = Gather(table, places)  word = Gather(words, ids)
    sum = Add(word, at)  free = Relu(sum)  y = MatMul(free, last) }"""


def test_positions_of_a_file_are_right_for_longer_inputs():
    weights = {"table": (ROWS, WIDTH), "words": (11, WIDTH), "last": (WIDTH, 3)}
    found = find(read(model(LOOKED_UP, weights)))
    net = found.module.double()
    longer = [torch.from_numpy(np.random.default_rng(0).integers(0, 11, (2, ROWS - 2)))]
    expected = outputs(net, longer, {})
    for seed in range(3):
        moved = permuted(net, found.symmetry.random(seed))
        assert difference(expected, outputs(moved, longer, {})) <= TOLERANCE
    wrong = with_a_fault(net, found.symmetry)
    assert difference(expected, outputs(wrong, longer, {})) > BLIND


class Filters(nn.Module):
    """Filters of 5 × 5, without the taps that see only padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 5, 5) / 5)

    def forward(self, x: Tensor) -> Tensor:
        reach = min(2, x.shape[-2] - 1)
        taps = slice(2 - reach, 3 + reach)
        x = self.first(x).relu().movedim(-1, 1)
        x = torch.conv2d(x, self.weight[:, :, taps, taps], padding=reach).tanh()
        found: Tensor = self.last(x.mean((2, 3)))
        return found


SMALL = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PADDED = (Slab(2, (0, 4)), Slab(3, (0, 4)))


def filters(seed: int) -> Filters:
    torch.manual_seed(seed)
    return Filters().double()


def planted() -> tuple[Filters, Filters, fxrebasin.Permutation]:
    """Two models that differ by a permutation, and by large numbers in taps that see padding."""
    a, b = filters(1), filters(1)
    element = fxrebasin.analyze(a, SMALL).random(3)
    b.load_state_dict(element.inverse().permute_state_dict(a.state_dict()))
    padded = torch.ones(5, 5, dtype=torch.bool)
    padded[1:4, 1:4] = False
    with torch.no_grad():
        for net in (a, b):
            net.weight[:, :, padded] = 9 * torch.randn_like(net.weight[:, :, padded])
    return a, b, element


@pytest.mark.parametrize(("side", "padded"), [(2, (0, 4)), (1, (0, 1, 3, 4))])
def test_taps_that_see_only_padding_move_along(side, padded):
    net = filters(0)
    symmetry = fxrebasin.analyze(net, SMALL[:, :side, :side])
    slabs = (Slab(2, padded), Slab(3, padded))
    assert [group.uncounted for group in symmetry.layout["weight"]] == [slabs]
    larger = [torch.randn(2, 6, 6, 3, dtype=torch.float64)]
    expected = outputs(net, larger, {})
    for seed in range(3):
        found = outputs(permuted(net, symmetry.random(seed)), larger, {})
        assert difference(expected, found) <= TOLERANCE
    wrong = with_a_fault(net, symmetry)
    assert difference(expected, outputs(wrong, larger, {})) > BLIND


class Painted(nn.Module):
    """Filters over a picture that is a parameter, of which a part is read."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.randn(1, WIDTH, 5, 5))
        self.filters, self.last = nn.Conv2d(WIDTH, WIDTH, 3), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filters(self.picture[:, :, :4, :4]).relu().mean((2, 3)) + x
        found: Tensor = self.last(x.relu())
        return found


def test_a_picture_that_filters_run_over_counts():
    symmetry = fxrebasin.analyze(Painted(), torch.randn(2, WIDTH))
    groups = symmetry.layout["picture"]
    assert [group.axes for group in groups] == [(1,)]
    assert all(not group.uncounted for group in groups)


def test_a_table_counts_where_it_was_not_read():
    choose, shape = CHOICES["a slice"]
    symmetry = fxrebasin.analyze(Positions(choose, *shape), torch.randint(0, 11, (2, 4)))
    assert all(not group.uncounted for groups in symmetry.layout.values() for group in groups)


@pytest.mark.parametrize("method", ["weight", "frank_wolfe", "sinkhorn"])
def test_taps_that_see_only_padding_are_not_compared(method):
    a, b, element = planted()
    kept = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    graph = fxrebasin.transform(b, ref=a, example_inputs=SMALL, method=method)
    report = graph.meta["fxrebasin"]
    assert all(np.array_equal(report.certificate.arrays[n], at) for n, at in element.arrays.items())
    assert report.distance_after < 1e-9 < report.distance_before
    assert torch.equal(
        graph.state_dict()["weight"], element.permute_tensor("weight", kept["weight"])
    )
    stats = fxrebasin.merge_stats(a, b, graph, example_inputs=SMALL)
    assert stats.distance_after < 1e-9
    assert stats.cosine_after == pytest.approx(1, abs=1e-9)


def test_taps_that_see_only_padding_are_not_compared_over_groups():
    a, b, _ = planted()
    aligned = fxrebasin.match(b, ref=a, example_inputs=SMALL, symmetry="all")
    found = applied_exactly(aligned, b.state_dict())
    read = (slice(None), slice(None), slice(1, 4), slice(1, 4))
    assert torch.allclose(found["weight"][read], a.weight[read], atol=1e-9)


def test_many_models_are_aligned_by_what_counts():
    a, b, element = planted()
    found = fxrebasin.align_many([a, b], example_inputs=SMALL)
    assert all(np.array_equal(found[1].arrays[n], at) for n, at in element.arrays.items())


def test_files_are_matched_by_what_counts():
    a, b, element = planted()
    symmetry = fxrebasin.analyze(a, SMALL)
    state_a, state_b = dict(a.state_dict()), dict(b.state_dict())
    sides = {
        name: tuple(Stored(tuple(s[name].shape), s[name].dtype) for s in (state_a, state_b))
        for name in state_a
    }
    free = tuple(c.name for c in symmetry.classes)
    problem = FileProblem(symmetry.classes, symmetry.layout, sides, free)

    def read(state):
        return lambda name, rows: state[name].clone() if rows is None else state[name][rows].clone()

    found = FileMatch(problem, make_schedule(problem, None), read(state_a), read(state_b)).run(9)
    assert found.distance_after < 1e-9 < found.distance_before
    assert all(np.array_equal(found.arrays[name], at) for name, at in element.arrays.items())


def test_a_certificate_says_what_counts(tmp_path):
    element = fxrebasin.analyze(filters(0), SMALL).random(0)
    element.save(tmp_path / "p.safetensors")
    loaded = fxrebasin.Permutation.load(tmp_path / "p.safetensors")
    slabs = [group.uncounted for group in loaded.layout["weight"]]
    assert slabs == [group.uncounted for group in element.layout["weight"]]
    assert PADDED in slabs


def test_rows_of_a_tensor_count_as_they_do_in_all_of_it():
    groups = (AxisGroup((2,), (), (Slab(0, (1, 4)), Slab(1, (2,)))),)
    whole = torch.randn(6, 3, 2)
    expected = counted(whole, groups)
    assert (expected == 0).sum() == 2 * 6 + 4 * 2
    parts = [counted(whole[at : at + 2], groups, at) for at in range(0, 6, 2)]
    assert torch.equal(torch.cat(parts), expected)
