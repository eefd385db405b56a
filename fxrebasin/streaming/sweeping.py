"""Coordinate descent on tensors that pass: one visit, and one tensor's share of a stream's gains.

Both depend on nothing but what they are given, so that visits of one sweep that share no tensors
may be made in any order, or on several machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from fxrebasin.gather import permuted
from fxrebasin.indexing import Arrays, extent, gather_index
from fxrebasin.layout import AxisGroup, IntArray
from fxrebasin.solvers.assignment import collected
from fxrebasin.solvers.coordinate_descent import CoordinateDescent, best_order
from fxrebasin.solvers.families import Family, make_families
from fxrebasin.solvers.pairs import Pair, joined, make_pairs
from fxrebasin.solvers.placement import Placement
from fxrebasin.streaming.problem import FileProblem

Tensors: TypeAlias = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Of the reference and the model, by name."""


def visit(problem: FileProblem, root: str, tensors: Tensors, placement: Placement) -> set[str]:
    """Solve one family exactly, with everything else as it is.

    Args:
        problem: classes and layout.
        root: of the family.
        tensors: all that hold it.
        placement: what is decided; changed in place.

    Returns:
        Names of the classes that became known or changed.
    """
    families = _families(problem, root, tensors)
    if not families:
        return set()
    return CoordinateDescent(families, placement, frugal=True).visit(0)


def add_gains(
    problem: FileProblem,
    stream: str,
    tensors: Tensors,
    placement: Placement,
    total: torch.Tensor,
    sign: int = 1,
) -> int:
    """Add what some tensors say about which unit of a stream is which.

    Args:
        problem: classes and layout.
        stream: the class.
        tensors: some that hold it, or the same rows of both sides of one.
        placement: what is decided; what is not does not count.
        total: gains, of shape (n, n); changed in place.
        sign: -1 to take them away again.

    Returns:
        How many elements of a unit told it from others.
    """
    told = 0
    for family in _families(problem, stream, tensors):
        for gram in family.all_grams():
            gram.add_to(total, placement, sign)
            told += gram.decided(placement) // gram.rows
    return told


def agreement(problem: FileProblem, tensors: Tensors, placement: Placement) -> float:
    """The inner product of the reference and the arranged model.

    Args:
        problem: classes and layout.
        tensors: in which all classes are known.
        placement: what is decided.
    """
    return sum(pair.agreement(placement) for pair in _pairs(problem, tensors))


def solved(total: torch.Tensor, now: IntArray, *, known: bool) -> tuple[IntArray, float]:
    """The best order of a stream, and how much more it collects than the present one.

    Args:
        total: gains, of shape (n, n).
        now: int64 of shape (n,).
        known: whether the present order was decided; it is kept then if it is as good.
    """
    gains = total.numpy()
    found = best_order(gains, now if known else None, None)
    return found, more(total, found, now)


def more(total: torch.Tensor, found: IntArray, now: IntArray) -> float:
    """How much more one order collects than another.

    Args:
        total: gains, of shape (n, n).
        found: int64 of shape (n,).
        now: int64 of shape (n,).
    """
    return float(collected(total.numpy(), found) - collected(total.numpy(), now))


def moved(tensor: torch.Tensor, groups: tuple[AxisGroup, ...], arrays: Arrays) -> torch.Tensor:
    """A tensor with its units in another order; the tensor itself where none can move.

    Args:
        tensor: whole, or some rows of it if no group is on its first axis.
        groups: of its axes.
        arrays: int64 by class name.
    """
    if not groups:
        return tensor
    return permuted(
        tensor, groups, [gather_index(g, extent(g, tensor.shape), arrays) for g in groups]
    )


def _families(problem: FileProblem, root: str, tensors: Tensors) -> list[Family]:
    pairs = joined(_pairs(problem, tensors))
    found = make_families(problem.classes, pairs, problem.roots[root])
    return [family for family in found if family.root == root]


def _pairs(problem: FileProblem, tensors: Tensors) -> Sequence[Pair]:
    one = {name: a for name, (a, _) in tensors.items()}
    two = {name: b for name, (_, b) in tensors.items()}
    return make_pairs(problem.layout, one, two, [n for n in tensors if n in problem.layout])
