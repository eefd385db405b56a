"""Elements of the groups of a model's classes: how they combine with permutations and each other.

An element is given by the name of its class: float64, of shape (copies, units, units) where
matrices act, else numbers that are not zero, of shape (copies, units). A class that is not named is
left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.groups import Groups
from fxrebasin.indexing import open_grids
from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.layout import IntArray, PermutationClass
from fxrebasin.permutation import Permutation

Elements: TypeAlias = Mapping[str, Tensor]

_MATRIX_DIMENSIONS = 3
_FAR = 1e-6
"""How far a matrix may be from its group; what is computed in float64 is a million times closer."""


def sources_of(permutation: Permutation, c: PermutationClass) -> IntArray:
    """Where the units of a class come from: copy times size plus the index of the unit.

    Args:
        permutation: of all units.
        c: one of its classes, or one whose units stay in place inside those of others.

    Returns:
        int64 of shape (copies, units).
    """
    sizes = {item.name: item.size for item in permutation.classes}
    within = [sizes[name] for name in c.within]
    grids = open_grids([*within, c.size])
    at = dict(zip(c.within, grids, strict=False))
    copy = np.zeros([1] * (len(within) + 1), np.int64)
    inner = {item.name: item.within for item in permutation.classes}
    for name, size in zip(c.within, within, strict=True):
        came = permutation.arrays[name][(*(at[w] for w in inner[name]), at[name])]
        copy = copy * size + came
    unit = permutation.arrays.get(c.name, grids[-1])
    return np.broadcast_to(copy * c.size + unit, [*within, c.size]).reshape(-1, c.size)


def carried(
    elements: Elements, permutation: Permutation, classes: Sequence[PermutationClass]
) -> dict[str, Tensor]:
    """What acts after a permutation as other elements do before it.

    Args:
        elements: that act before.
        permutation: of all units.
        classes: of the elements.
    """
    found = {}
    for c in classes:
        if c.name not in elements:
            continue
        source = torch.tensor(sources_of(permutation, c))
        copy, unit = source // c.size, source % c.size
        element = elements[c.name]
        if element.dim() == _MATRIX_DIMENSIONS:
            found[c.name] = element[copy[:, :1, None], unit[:, :, None], unit[:, None, :]]
        else:
            found[c.name] = element[copy, unit]
    return found


def after(second: Elements, first: Elements) -> dict[str, Tensor]:
    """Elements that act as `first` and then as `second`.

    Args:
        second: that act last.
        first: that act before.
    """
    found = {**first, **second}
    for name in second.keys() & first.keys():
        one, two = first[name], second[name]
        found[name] = two @ one if one.dim() == _MATRIX_DIMENSIONS else two * one
    return found


def undone(elements: Elements) -> dict[str, Tensor]:
    """Elements that undo others.

    Args:
        elements: to be undone.
    """
    return {
        name: torch.linalg.inv(item) if item.dim() == _MATRIX_DIMENSIONS else 1 / item
        for name, item in elements.items()
    }


def check_elements(
    elements: Elements, groups: Groups, classes: Sequence[PermutationClass]
) -> dict[str, Tensor]:
    """Elements as float64 copies, in the order of the classes.

    Args:
        elements: by the name of the class.
        groups: that they are of.
        classes: with those that are turned in pairs.

    Raises:
        InputError: one has no class, or another shape than it has, or is not of its group.
    """
    unknown = sorted(elements.keys() - {c.name for c in classes})
    if unknown:
        raise InputError(f"elements name classes that do not exist: {', '.join(unknown)}")
    found = {}
    for c in classes:
        if c.name in elements:
            element = elements[c.name].detach().to(torch.float64).clone()
            own = groups.kinds.get(c.name, ClassKind(GroupKind.PERMUTATION, {}, {}))
            fault = _fault(element, own, c)
            if fault:
                raise InputError(f"the element of class {c.name!r} ({own.kind.value}) {fault}")
            found[c.name] = element
    return found


def _fault(element: Tensor, own: ClassKind, c: PermutationClass) -> str | None:
    """What keeps a tensor from being an element of a group, if anything does."""
    kind = own.kind
    wide = (c.size,) if kind.has_matrices else ()
    shape = (c.count, c.size, *wide)
    if tuple(element.shape) != shape:
        return f"needs shape {shape}, got {tuple(element.shape)}"
    if not bool(element.isfinite().all()):
        return "holds numbers that are not finite"
    if not kind.has_matrices:
        return _fault_of_numbers(element, kind)
    if kind is GroupKind.COMPLEX_PAIRS and _far(element, _paired(element, own.partner)):
        return "does not turn its units in pairs"
    if kind in (GroupKind.COMPLEX_PAIRS, GroupKind.GENERAL_LINEAR):
        singular = bool((torch.linalg.matrix_rank(element) < c.size).any())
        return "cannot be inverted" if singular else None
    if _far(element @ element.mT, torch.eye(c.size, dtype=torch.float64).expand_as(element)):
        return "is not orthogonal"
    sums = element.sum(-1)
    if kind is GroupKind.ORTHOGONAL_FIXING_ONES and _far(sums, sums[:, :1].sign().expand_as(sums)):
        return "does not leave the vector of ones as it is"
    return None


def _fault_of_numbers(element: Tensor, kind: GroupKind) -> str | None:
    if bool((element == 0).any()):
        return "holds zeros"
    if kind not in (GroupKind.SIGNED, GroupKind.MONOMIAL) and bool((element < 0).any()):
        return "holds negative numbers"
    if kind not in (GroupKind.POSITIVE, GroupKind.MONOMIAL) and bool((element.abs() != 1).any()):
        return "holds numbers other than 1 and -1"
    return None


def _paired(element: Tensor, partner: Sequence[int]) -> Tensor:
    """The part of matrices that multiplies each pair of units by a complex number."""
    units, other = torch.arange(len(partner)), torch.tensor(partner)
    real = (element[:, units, units] + element[:, other, other]) / 2
    imaginary = (element[:, units, other] - element[:, other, units]) / 2
    found = torch.zeros_like(element)
    found[:, units, units] = real
    found[:, units, other] = imaginary
    return found


def _far(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() > _FAR * max(1.0, float(two.abs().max())))
