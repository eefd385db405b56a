"""The tensors that are matched: each of the reference beside the one of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from fxrebasin._gather import storage_identity
from fxrebasin.layout import AxisGroup, Layout
from fxrebasin.solvers.placement import Axes, Axis, Placement


@dataclass(frozen=True)
class Pair:
    """One tensor of the reference (a) and of the model that moves (b).

    Both are views of shape `(positions of each group..., rest)`: the axes of a group are merged
    into one, and all axes that belong to no group into the last.
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor
    groups: tuple[AxisGroup, ...]
    axes: tuple[Axis, ...]

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Product of the means and product of the standard deviations of both sides."""
        found = [torch.std_mean(x.to(self.dtype), correction=0) for x in (self.a, self.b)]
        deviations, means = ([float(x) for x in side] for side in zip(*found, strict=True))
        return means[0] * means[1], deviations[0] * deviations[1]

    @property
    def spread(self) -> float:
        """Product of the standard deviations; 0 if one side is the same everywhere."""
        return self.moments[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: float32, or float64 if a tensor has that."""
        wide = torch.float64 in (self.a.dtype, self.b.dtype)
        return torch.float64 if wide else torch.float32

    def arranged(self, placement: Placement) -> torch.Tensor:
        """b with every axis gathered.

        Args:
            placement: in which all classes of this tensor are known.
        """
        moved = self.b
        for dim, axis in enumerate(self.axes):
            source = torch.from_numpy(axis.source(placement))
            if not torch.equal(source, torch.arange(axis.total)):
                moved = moved.index_select(dim, source.to(moved.device))
        return moved

    def agreement(self, placement: Placement) -> float:
        """The inner product of a and the arranged b, summed in float64.

        Args:
            placement: in which all classes of this tensor are known.
        """
        moved = self.arranged(placement)
        return sum(
            float((x.to(self.dtype) * y.to(x.device, self.dtype)).sum(dtype=torch.float64))
            for x, y in zip(blocks_of(self.a), blocks_of(moved), strict=True)
        )


def blocks_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A tensor in parts along its first axis that fit into a processor's cache.

    Args:
        tensor: of any shape with at least one axis.
    """
    row = max(1, tensor[:1].numel())
    parts: tuple[torch.Tensor, ...] = tensor.split(max(1, 2**20 // row))
    return parts


def make_pairs(
    layout: Layout,
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
    names: Collection[str],
) -> list[Pair]:
    """Pairs for all names, tied tensors once.

    Args:
        layout: by tensor name.
        state_a: tensors of the reference, floating or complex.
        state_b: tensors of the model.
        names: of the tensors that are matched, all in the layout.
    """
    axes = Axes()
    seen = set()
    pairs = []
    for name in names:
        a, b = (view_of_reals(state[name].detach()) for state in (state_a, state_b))
        tie = storage_identity(state_b[name])
        if tie in seen or a.numel() == 0:
            continue
        seen.add(tie)
        groups = layout[name]
        a, b = unfolded(a, groups), unfolded(b, groups)
        found = tuple(axes.of(g, a.shape[dim]) for dim, g in enumerate(groups))
        pairs.append(Pair(name, a, b, groups, found))
    return pairs


def view_of_reals(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with an axis of 2 more, any other tensor as it is.

    Args:
        tensor: of any dtype.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def unfolded(tensor: torch.Tensor, groups: tuple[AxisGroup, ...]) -> torch.Tensor:
    """The axes of each group merged and in front, the other axes merged behind them.

    Args:
        tensor: of any shape.
        groups: disjoint axes.

    Returns:
        A view where strides allow it, of shape `(positions of each group..., rest)`.
    """
    grouped = [axis for group in groups for axis in group.axes]
    rest = [axis for axis in range(tensor.dim()) if axis not in grouped]
    ordered = tensor.permute(*grouped, *rest)
    for k, group in enumerate(groups):
        ordered = ordered.flatten(k, k + len(group.axes) - 1)
    return ordered.reshape(*ordered.shape[: len(groups)], -1)
