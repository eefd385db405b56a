"""Counts the permutations of a program's state that change nothing, by trying all of them.

Tried are all permutations of all axes of all state tensors, each axis on its own. Elements that
permute one axis differently per index of another are not among these, so that the number says
something about a group without such elements only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fxrebasin.symmetry import Symmetry
from tests.fuzz.outputs import difference, tensors

MOST = 1300
"""Permutations that are tried of one program."""

TOLERANCE = 1e-9


def found_order(symmetry: Symmetry) -> int | None:
    """The order of what was found; None if it has elements that are not tried here."""
    plain = all(not item.within for item in symmetry.classes)
    single = all(len(group.axes) == 1 for groups in symmetry.layout.values() for group in groups)
    return math.prod(math.factorial(c.size) for c in symmetry.classes) if plain and single else None


def count(net: nn.Module, x: Tensor, names: Sequence[str], most: int = MOST) -> int | None:
    """How many permutations of the axes of some tensors leave the outputs as they are.

    Args:
        net: a module.
        x: its input.
        names: of the tensors.
        most: permutations to try at most; None is returned where there are more.
    """
    state = {name: value.detach() for name, value in net.state_dict().items()}
    axes = [(name, axis) for name in names for axis in range(state[name].ndim)]
    sizes = [state[name].shape[axis] for name, axis in axes]
    if math.prod(math.factorial(size) for size in sizes) > most:
        return None
    expected = tensors(net(x))
    found = 0
    for orders in itertools.product(*(itertools.permutations(range(n)) for n in sizes)):
        moved = {name: state[name] for name in names}
        for (name, axis), order in zip(axes, orders, strict=True):
            if order != tuple(range(len(order))):
                moved[name] = moved[name].index_select(axis, torch.tensor(order))
        found += difference(expected, tensors(functional_call(net, moved, (x,)))) <= TOLERANCE
    return found


def read_tensors(net: nn.Module, x: Tensor, symmetry: Symmetry) -> list[str]:
    """Parameters that the outputs depend on, and the buffers that were taken for state."""
    generator = torch.Generator().manual_seed(5)
    expected = tensors(net(x))
    found = []
    for name, value in net.named_parameters():
        other = 0.5 + torch.rand(value.shape, generator=generator, dtype=value.dtype)
        if difference(expected, tensors(functional_call(net, {name: other}, (x,)))) > TOLERANCE:
            found.append(name)
    return list(dict.fromkeys([*found, *symmetry.layout]))
