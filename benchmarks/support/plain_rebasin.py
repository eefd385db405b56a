"""Weight matching as published (Git Re-Basin, algorithm 1, arXiv:2209.04836), with nothing added.

Classes are visited in random order; each one's costs are built from all the tensors that hold it,
and given to scipy, until a whole sweep gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fxrebasin.indexing import Arrays
from fxrebasin.layout import AxisGroup, IntArray, Layout, PermutationClass

_LEAST_GAIN = 1e-12


class NotPlainError(ValueError):
    """A class is more than whole axes of tensors, which the published algorithm does not have."""


@dataclass(frozen=True)
class Specification:
    """Which class permutes which axes.

    Args:
        sizes: number of units by class name.
        axes: tensors and axes by class name.
        classes: the class on each axis that has one, by tensor name.
    """

    sizes: Mapping[str, int]
    axes: Mapping[str, tuple[tuple[str, int], ...]]
    classes: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Plain:
    """What came out.

    Args:
        arrays: int64 by class name.
        sweeps: over all classes.
    """

    arrays: Arrays
    sweeps: int


def specify(
    classes: Collection[PermutationClass], layout: Layout, names: Collection[str]
) -> Specification:
    """The specification that one would write by hand, generated from the symmetry.

    Args:
        classes: of the symmetry.
        layout: of the symmetry.
        names: of the tensors that are compared.

    Raises:
        NotPlainError: a class is within another one, or holds a part of an axis.
    """
    on_axes: dict[str, dict[int, str]] = {}
    axes: dict[str, list[tuple[str, int]]] = {c.name: [] for c in classes}
    for tensor in (name for name in layout if name in names):
        for group in layout[tensor]:
            axis, name = _whole_axis(group, tensor)
            on_axes.setdefault(tensor, {})[axis] = name
            axes[name].append((tensor, axis))
    sizes = {c.name: c.size for c in classes}
    return Specification(sizes, {n: tuple(found) for n, found in axes.items()}, on_axes)


def _whole_axis(group: AxisGroup, tensor: str) -> tuple[int, str]:
    slots = [slot for piece in group.pieces for slot in piece.slots]
    if len(group.axes) == 1 and len(slots) == 1 and slots[0].class_name is not None:
        positions = group.pieces[0].positions
        if np.array_equal(positions, np.arange(positions.size)):
            return group.axes[0], slots[0].class_name
    raise NotPlainError(f"{tensor}, axes {group.axes}: more than one class on whole axes")


def match_plainly(
    specification: Specification,
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
    seed: int,
    most_sweeps: int = 100,
) -> Plain:
    """Coordinate descent from the present order.

    Args:
        specification: of the classes.
        state_a: tensors of the reference.
        state_b: tensors of the model that is permuted.
        seed: for the order of the classes.
        most_sweeps: when to stop in any case.
    """
    generator = np.random.default_rng(seed)
    names = list(specification.sizes)
    arrays: dict[str, IntArray] = {n: np.arange(k) for n, k in specification.sizes.items()}
    sweeps, gained = 0, True
    while gained and sweeps < most_sweeps:
        sweeps, gained = sweeps + 1, False
        for k in generator.permutation(len(names)):
            name = names[k]
            costs = _costs(specification, name, arrays, state_a, state_b)
            rows, columns = linear_sum_assignment(costs, maximize=True)
            gain = costs[rows, columns].sum() - costs[rows, arrays[name]].sum()
            gained = gained or bool(gain > _LEAST_GAIN)
            arrays[name] = columns
    return Plain(arrays, sweeps)


def _costs(
    specification: Specification,
    name: str,
    arrays: Arrays,
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Inner products of all units of a with all units of b, the other classes in place."""
    n = specification.sizes[name]
    total = torch.zeros(n, n)
    for tensor, axis in specification.axes[name]:
        moved = state_b[tensor]
        for other, beside in specification.classes[tensor].items():
            if other != axis:
                moved = moved.index_select(other, torch.from_numpy(arrays[beside]))
        rows, columns = (x.movedim(axis, 0).reshape(n, -1) for x in (state_a[tensor], moved))
        total += rows @ columns.T
    return np.asarray(total.numpy())


def objective(
    specification: Specification,
    arrays: Arrays,
    state_a: Mapping[str, torch.Tensor],
    state_b: Mapping[str, torch.Tensor],
    names: Collection[str],
) -> float:
    """The inner product of the reference and the permuted model.

    Args:
        specification: of the classes.
        arrays: int64 by class name.
        state_a: tensors of the reference.
        state_b: tensors of the model.
        names: of the tensors that are compared.
    """
    total = 0.0
    for name in names:
        moved = state_b[name]
        for axis, held in specification.classes.get(name, {}).items():
            moved = moved.index_select(axis, torch.from_numpy(arrays[held]))
        total += float((state_a[name] * moved).sum(dtype=torch.float64))
    return total
