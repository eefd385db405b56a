"""Matrices made of a diagonal: a row and a column belong together, whatever the diagonal holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.oracle.sample import Operand, p, program
from tests.support.oracle.trial import Trial, analysed, incorrect
from tests.support.randomise import log10_factorial as f

DIAGONALS: dict[str, tuple[Callable[[Tensor], Tensor], Operand, float]] = {
    "one number": (lambda x: torch.diag_embed(x.expand(3)), p(1), f(3)),
    "numbers twice": (lambda x: torch.diag_embed(x.repeat(2)), p(3), f(3) + 3 * f(2)),
    "a number per element of a batch": (
        lambda x: torch.diag_embed(x.exp().expand(2, 3)),
        p(2, 1),
        f(2) + f(3),
    ),
    "all different": (lambda x: torch.diag(x.exp()), p(3), f(3)),
}


@pytest.mark.parametrize("name", DIAGONALS)
def test_rows_move_with_their_columns(name: str) -> None:
    call, operand, order = DIAGONALS[name]
    trial = Trial(program(name, call, operand))
    symmetry = analysed(trial)
    assert not incorrect(trial, symmetry)
    assert symmetry.log10_order() == pytest.approx(order)
