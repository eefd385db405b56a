"""Which one-parameter groups leave a model's function as it is, by derivatives along them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxrebasin.exporters.verify.float64 import TrueFloat64
from fxrebasin.kinds import GroupKind, Place
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.places import parts_of, positions_of, rows_of, with_rows
from fxrebasin.running.outputs import counted
from fxrebasin.symmetry import Symmetry

GENERATORS = (
    GroupKind.GENERAL_LINEAR,
    GroupKind.ORTHOGONAL,
    GroupKind.ORTHOGONAL_FIXING_ONES,
    GroupKind.POSITIVE,
)


def generator(kind: GroupKind, size: int, seed: int = 0) -> Tensor:
    """A direction in a group of matrices that has nothing special about it."""
    gen = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, generator=gen, dtype=torch.float64)
    if kind is GroupKind.POSITIVE:
        return torch.diag(drawn.diagonal())
    if kind is GroupKind.GENERAL_LINEAR:
        return drawn
    skew = drawn - drawn.T
    centre = torch.eye(size, dtype=torch.float64) - 1 / size
    return skew if kind is GroupKind.ORTHOGONAL else centre @ skew @ centre


def layout_of(symmetry: Symmetry, c: PermutationClass) -> Layout:
    """Where the units of a class are."""
    groups = symmetry.groups
    assert groups is not None
    turned = c.kind is GroupKind.COMPLEX_PAIRS
    return groups.turned_layout if turned else symmetry.layout


def places_of(symmetry: Symmetry, c: PermutationClass) -> dict[Place, Tensor]:
    """Each part of the state with units of a class, and their positions."""
    layout, sizes = layout_of(symmetry, c), {item.name: item.size for item in symmetry.classes}
    return {
        place: positions_of(layout, place, c, sizes)
        for state, groups in layout.items()
        for number, group in enumerate(groups)
        for index, piece in enumerate(group.pieces)
        for slot, item in enumerate(piece.slots)
        if item.class_name == c.name
        for part in range(len(parts_of(piece)))
        for place in [Place(state, number, index, slot, part)]
    }


def multiplied(
    symmetry: Symmetry, c: PermutationClass, state: Mapping[str, Tensor], place: Place, by: Tensor
) -> Tensor:
    """A state tensor whose units at a place are mixed by a matrix in each copy."""
    group = layout_of(symmetry, c)[place.state][place.group]
    positions = places_of(symmetry, c)[place]
    rows = rows_of(state[place.state], group, positions)
    mixed = torch.einsum("ij,cjpr->cipr", by, rows)
    return with_rows(state[place.state], group, positions, mixed)


def outputs_of(model: nn.Module, state: Mapping[str, Tensor], given: Mapping[str, Any]) -> Tensor:
    """All outputs that count, as one vector."""
    with sdpa_kernel(SDPBackend.MATH), TrueFloat64():
        returned = functional_call(model, dict(state), (), dict(given))
    return torch.cat([item.flatten() for item in counted(returned).values()])


def free_directions(
    model: nn.Module, symmetry: Symmetry, c: PermutationClass, given: Mapping[str, Any]
) -> set[GroupKind]:
    """The groups of which one direction leaves the function, with some variance at each place.

    Vectors behind norms are left out: that they make up for what reads them is another matter.
    """
    kinds = symmetry.groups.kinds[c.name] if symmetry.groups is not None else None
    behind = {next(iter(factor)) for factor in kinds.factors} if kinds is not None else set()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    own = {name: tensor.detach() for name, tensor in model.named_parameters()}
    found = set()
    for kind in GENERATORS:
        by = generator(kind, c.size)
        columns = []
        for place in places_of(symmetry, c):
            if place.state not in own or (place in behind and own[place.state].dim() == 1):
                continue
            for matrix in (by, -by.T) if kind is GroupKind.GENERAL_LINEAR else (by,):
                zero = torch.zeros_like(by)
                still = multiplied(symmetry, c, state, place, zero)
                there = torch.zeros_like(state[place.state])
                there += multiplied(symmetry, c, state, place, matrix) - still
                tangent = {
                    n: there if n == place.state else torch.zeros_like(t) for n, t in own.items()
                }
                _, along = jvp(
                    lambda q: outputs_of(model, {**state, **q}, given), (own,), (tangent,)
                )
                if along.norm() > 1e-9 * math.sqrt(along.numel()):
                    columns.append(along / along.norm())
        if columns:
            assert len(columns[0]) > len(columns)
            values = torch.linalg.svdvals(torch.stack(columns, 1))
            # whatever is free for skew matrices is so for others and their transposes as well
            needed = 2 if kind is GroupKind.GENERAL_LINEAR else 1
            if int((values < 1e-9 * values[0]).sum()) >= needed:
                found.add(kind)
    return found
