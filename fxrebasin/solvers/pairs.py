"""The tensors that are matched: each of the reference beside the one of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fxrebasin.gather import storage_identity
from fxrebasin.layout import AxisGroup, FloatArray, IntArray, Layout
from fxrebasin.solvers.placement import Axes, Axis, Placement

# Elements that fit into a processor's cache, those that are enough work for an accelerator, and
# those that are summed in their own precision.
_BLOCK = 2**17
_BLOCK_OF_DEVICE = 2**24
_RUN = 2**14
# Pairs with fewer columns than this are joined where they can be.
_NARROW = 64


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
    def reach(self) -> tuple[float, float]:
        """What every order of the units collects, and at most how much more the best one can.

        By Cauchy and Schwarz, for each position along the last axis, which never moves.
        """
        (mean_a, deviation_a), (mean_b, deviation_b) = (
            _moments(x, self.dtype) for x in (self.a, self.b)
        )
        count = self.a.numel() // self.a.shape[-1]
        return count * float(mean_a @ mean_b), count * float(deviation_a @ deviation_b)

    @cached_property
    def memory(self) -> tuple[FloatArray, FloatArray] | None:
        """Both sides as numpy sees them; None where it cannot, or where their dtypes differ."""
        if self.a.dtype == self.b.dtype and is_plain(self.a) and is_plain(self.b):
            return self.a.numpy(), self.b.numpy()
        return None

    @cached_property
    def telling_columns(self) -> int:
        """Positions along the last axis at which neither side is the same everywhere."""
        # Usually the ends differ, which is quick to see, and quickest by counting in numpy.
        first, last = (0,) * len(self.axes), (-1,) * len(self.axes)
        if self.memory is not None:
            alike = any(np.count_nonzero(side[first] == side[last]) for side in self.memory)
        else:
            alike = any(bool((side[first] == side[last]).any()) for side in (self.a, self.b))
        if not alike:
            return int(self.a.shape[-1])
        return int((_differs(self.a) & _differs(self.b)).sum())

    @cached_property
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
            moved = gathered(moved, dim, axis.source(placement))
        return moved

    def agreement(self, placement: Placement) -> float:
        """The inner product of a and the arranged b; sums of many elements are in float64.

        Args:
            placement: in which all classes of this tensor are known.
        """
        moved = self.arranged(placement)
        return sum(
            inner(x.to(self.dtype), y.to(x.device, self.dtype))
            for x, y in blocks_of_both(self.a, moved)
        )


def blocks_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A tensor in parts along its first axis that fit into a processor's cache, or fill a device.

    Args:
        tensor: of any shape with at least one axis.
    """
    most = _BLOCK if tensor.device.type in ("cpu", "meta") else _BLOCK_OF_DEVICE
    if tensor.numel() <= most:
        return (tensor,)
    row = max(1, tensor[:1].numel())
    parts: tuple[torch.Tensor, ...] = tensor.split(max(1, most // row))
    return parts


def blocks_of_both(
    one: torch.Tensor, two: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same parts of two tensors, which may be on different devices.

    Args:
        one: decides on the parts.
        two: of the same shape.
    """
    parts = blocks_of(one)
    return zip(parts, two.split([len(part) for part in parts]), strict=True)


def gathered(tensor: torch.Tensor, dim: int, source: IntArray) -> torch.Tensor:
    """Positions along one axis, in a given order.

    Args:
        tensor: of any shape.
        dim: the axis.
        source: int64 of shape (positions,): which ones.

    Returns:
        A view if positions follow each other.
    """
    if is_run(source):
        return tensor.narrow(dim, int(source[0]), len(source))
    # numpy moves runs of elements at once, which torch does along the first axis only.
    in_runs = 0 < dim < tensor.dim() - 1 and tensor.shape[dim + 1 :].numel() > 1
    if in_runs and is_plain(tensor):
        return torch.from_numpy(tensor.numpy().take(source, axis=dim))
    return tensor.index_select(dim, torch.from_numpy(source).to(tensor.device))


def inner(x: torch.Tensor, y: torch.Tensor) -> float:
    """The inner product, in runs short enough to lose no digits, which are summed in float64.

    An accelerator multiplies in float64, where a launch for each run would take longer than that.

    Args:
        x: of any shape.
        y: of the same shape, dtype and device.
    """
    if not x.is_cpu:
        return float((x.reshape(-1).double() * y.reshape(-1).double()).sum())
    if x.numel() <= _RUN:
        return float(torch.dot(x.reshape(-1), y.reshape(-1)))
    runs = (side.reshape(-1).split(_RUN) for side in (x, y))
    return float(torch.stack([torch.dot(*run) for run in zip(*runs, strict=True)]).double().sum())


def is_run(source: IntArray) -> bool:
    """Whether there are positions, and they follow each other.

    Args:
        source: int64 of shape (positions,).
    """
    n = len(source)
    return n > 0 and source[-1] - source[0] == n - 1 and bool((source[1:] > source[:-1]).all())


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether numpy can work on the memory of a tensor, and finds it in order."""
    known = tensor.dtype in (torch.float32, torch.float64) and tensor.is_cpu
    return known and tensor.is_contiguous()


def lies_in(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether a tensor begins in the memory of another one.

    Args:
        x: of any shape; its storage may be another one for the same memory.
        y: of any shape.
    """
    memory = y.untyped_storage()
    return 0 <= x.data_ptr() - memory.data_ptr() < memory.nbytes()


def _moments(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation at each position along the last axis, in float64."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    blocks = [block.to(dtype) for block in blocks_of(rows)]
    sums = [block.sum(0, dtype=torch.float64).cpu() for block in blocks]
    squares = [block.square().sum(0, dtype=torch.float64).cpu() for block in blocks]
    mean, square = (torch.stack(x).sum(0) / len(rows) for x in (sums, squares))
    return mean, (square - mean**2).clamp_(min=0).sqrt_()


def _differs(tensor: torch.Tensor) -> torch.Tensor:
    """For each position along the last axis whether any two elements differ; on the CPU."""
    first = tensor[(0,) * (tensor.dim() - 1)]
    rows = [(block != first).reshape(-1, len(first)).any(0) for block in blocks_of(tensor)]
    return torch.stack(rows).any(0).cpu()


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
        tie = storage_identity(state_b[name])
        if tie in seen or state_b[name].numel() == 0:
            continue
        seen.add(tie)
        groups = layout[name]
        a, b = _unfolded_reals(state_a[name], groups), _unfolded_reals(state_b[name], groups)
        found = tuple(axes.of(g, a.shape[dim]) for dim, g in enumerate(groups))
        pairs.append(Pair(name, a, b, groups, found))
    return pairs


def joined(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, with those narrow ones side by side that have the same single axis.

    There are many biases and the like; side by side they are handled in one go.

    Args:
        pairs: all of them.

    Returns:
        Joined pairs stand where the first of them stood.
    """
    alike: dict[tuple[object, ...], list[Pair]] = {}
    for k, pair in enumerate(pairs):
        key: tuple[object, ...] = (k,)
        if len(pair.axes) == 1 and pair.a.shape[-1] < _NARROW:
            sides = ((side.dtype, side.device) for side in (pair.a, pair.b))
            key = (id(pair.axes[0]), *sides)
        alike.setdefault(key, []).append(pair)
    return [_side_by_side(found) for found in alike.values()]


def _side_by_side(pairs: Sequence[Pair]) -> Pair:
    """One pair of several with the same axis."""
    first = pairs[0]
    if len(pairs) == 1:
        return first
    a, b = (torch.cat(sides, dim=1) for sides in zip(*((p.a, p.b) for p in pairs), strict=True))
    return Pair(", ".join(p.name for p in pairs), a, b, first.groups, first.axes)


def _unfolded_reals(tensor: torch.Tensor, groups: tuple[AxisGroup, ...]) -> torch.Tensor:
    """Real numbers without gradient, the axes of each group merged and in front."""
    data = tensor.detach() if tensor.requires_grad else tensor
    return unfolded(view_of_reals(data), groups)


def view_of_reals(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with one more axis, of size 2; any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def unfolded(tensor: torch.Tensor, groups: tuple[AxisGroup, ...]) -> torch.Tensor:
    """The axes of each group merged and in front, the other axes merged behind them.

    Args:
        tensor: of any shape.
        groups: disjoint axes.

    Returns:
        A view where strides allow it, of shape `(positions of each group..., rest)`.
    """
    if [group.axes for group in groups] == [(k,) for k in range(len(groups))]:
        return tensor.flatten(len(groups)) if tensor.dim() > len(groups) else tensor.unsqueeze(-1)
    grouped = [axis for group in groups for axis in group.axes]
    rest = [axis for axis in range(tensor.dim()) if axis not in grouped]
    ordered = tensor.permute(*grouped, *rest)
    for k, group in enumerate(groups):
        ordered = ordered.flatten(k, k + len(group.axes) - 1)
    return ordered.reshape(*ordered.shape[: len(groups)], -1)


def folded(
    tensor: torch.Tensor, groups: tuple[AxisGroup, ...], shape: Sequence[int]
) -> torch.Tensor:
    """What `unfolded` made, in its original shape.

    Args:
        tensor: of shape `(positions of each group..., rest)`.
        groups: disjoint axes.
        shape: that the tensor had.
    """
    grouped = [axis for group in groups for axis in group.axes]
    ordered = grouped + [axis for axis in range(len(shape)) if axis not in grouped]
    back = [ordered.index(axis) for axis in range(len(shape))]
    return tensor.reshape([shape[axis] for axis in ordered]).permute(back)
