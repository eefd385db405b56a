"""Elements of the groups that act on the classes of a symmetry."""

from __future__ import annotations

import torch
from torch import Tensor

from fxrebasin.kinds import GroupKind
from fxrebasin.symmetry import Symmetry


def elements_of(symmetry: Symmetry) -> dict[str, Tensor]:
    """An element of each group that is more than permutations, another one in each copy."""
    groups = symmetry.groups
    assert groups is not None
    gen = torch.Generator().manual_seed(5)
    chosen: dict[str, Tensor] = {}
    for c in symmetry.classes:
        if c.kind is GroupKind.PERMUTATION:
            continue
        if not c.kind.has_matrices:
            numbers = torch.rand(c.count, c.size, generator=gen, dtype=torch.float64) + 0.5
            numbers = torch.ones_like(numbers) if c.kind is GroupKind.SIGNED else numbers
            odd = torch.arange(c.size) % 2 == 1
            odd = odd & bool(groups.kinds[c.name].signs)
            chosen[c.name] = torch.where(odd, -numbers, numbers)
            continue
        drawn = torch.randn(c.count, c.size, c.size, generator=gen, dtype=torch.float64) / 2
        if c.kind is GroupKind.COMPLEX_PAIRS:
            partner = torch.tensor(groups.kinds[c.name].partner)
            turn = torch.zeros_like(drawn)
            units, low = torch.arange(c.size), torch.minimum(torch.arange(c.size), partner)
            turn[:, units, units] = drawn[:, low, 0]
            turn[:, units, partner] = drawn[:, low, 1] * torch.where(units == low, 1.0, -1.0)
            drawn = turn
        elif c.kind is not GroupKind.GENERAL_LINEAR:
            drawn = drawn - drawn.mT
        if c.kind is GroupKind.ORTHOGONAL_FIXING_ONES:
            centre = torch.eye(c.size, dtype=torch.float64) - 1 / c.size
            drawn = centre @ drawn @ centre
        chosen[c.name] = torch.linalg.matrix_exp(drawn)
    return chosen
