"""Tables of which a call reads a part: the rest moves along, so that longer inputs are right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.importers.onnx.finding import find
from fxrebasin.importers.onnx.loading import read
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
