"""Units that a reduction meets several times keep how often it meets them, at each place."""

import itertools
import math
import random

import pytest
import torch
from torch import nn

import fxrebasin

UNITS = 4


class Looked(nn.Module):
    """Reads its only parameter by a table and reduces each row of what it read."""

    def __init__(self, table, reduction):
        super().__init__()
        self.bank = nn.Parameter(torch.randn(UNITS, generator=torch.Generator().manual_seed(0)))
        self.table, self.reduction = torch.tensor(table), reduction

    def forward(self, x):
        return self.reduction(self.bank[self.table]) + 0 * x.sum()


def drawn_table(seed):
    """Rows with each unit a number of times that is drawn, in an order that is drawn."""
    rng = random.Random(seed)
    width, rows = rng.randint(2, 6), rng.randint(1, 4)
    return [[rng.randrange(UNITS) for _ in range(width)] for _ in range(rows)]


def order_by_trying(table):
    """How many orders of the units leave every row the multiset that it is."""
    rows = [sorted(row) for row in table]
    return sum(
        [sorted(order[unit] for unit in row) for row in table] == rows
        for order in itertools.permutations(range(UNITS))
    )


@pytest.mark.parametrize("name", ["sum", "logsumexp", "windows"])
def test_reduced_rows_keep_how_often_each_unit_is_in_them(name):
    reductions = {
        "sum": lambda rows: rows.sum(1),
        "logsumexp": lambda rows: rows.logsumexp(1),
        "windows": lambda rows: rows.unfold(1, 2, 1).flatten(1).sum(1),
    }
    for seed in range(60):
        table = drawn_table(seed)
        symmetry = fxrebasin.analyze(Looked(table, reductions[name]), torch.randn(2))
        windows = [[unit for pair in itertools.pairwise(row) for unit in pair] for row in table]
        met = windows if name == "windows" else table
        assert symmetry.log10_order() <= math.log10(order_by_trying(met)) + 1e-9, (seed, table)


@pytest.mark.parametrize(
    ("table", "order"),
    [
        ([[0, 2, 2, 1], [1, 0, 0, 2], [2, 1, 1, 0]], 1),  # each unit twice in one row, in all three
        ([[0, 0, 1, 1], [2, 2, 3, 3]], 2 * 2),
        ([[0, 1, 2, 3], [3, 2, 1, 0]], 24),
        ([[0, 0, 1, 2], [0, 0, 2, 1]], 2),
    ],
)
def test_closed_forms_of_units_met_several_times(table, order):
    symmetry = fxrebasin.analyze(Looked(table, lambda rows: rows.sum(1)), torch.randn(2))
    assert symmetry.log10_order() == pytest.approx(math.log10(order))
