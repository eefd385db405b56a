"""Elements near the identity by coordinates that may be any numbers, for descent by gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.groups import Groups
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass

_SKEW = frozenset({GroupKind.ORTHOGONAL, GroupKind.ORTHOGONAL_FIXING_ONES})
_SCALED = frozenset({GroupKind.POSITIVE, GroupKind.MONOMIAL})


@dataclass(frozen=True)
class Element:
    """What acts on the units of a class.

    Attributes:
        own: matrices of shape (copies, units, units), or positive numbers of shape (copies, units).
        contragredient: the transposes of the inverses, or the inverses of the numbers.
    """

    own: Tensor
    contragredient: Tensor


@dataclass(frozen=True)
class Chart:
    """Coordinates of the elements of one class; zeros are the identity.

    Orthogonal matrices are exponentials of skew ones, which have no means along either axis where
    the vector of ones stays; invertible matrices are exponentials of any; pairs are multiplied by
    numbers with an angle and a logarithm of a size; numbers have logarithms, so that signs stay.

    Args:
        c: the class.
        kind: its group, with a continuous part.
        partner: the other unit of each pair, for complex pairs.

    Example:
        >>> chart = Chart(PermutationClass("units", 3), GroupKind.ORTHOGONAL)
        >>> drawn = torch.arange(9.0).reshape(1, 3, 3)
        >>> element = chart.element(drawn)
        >>> torch.allclose(element.own @ element.own.mT, torch.eye(3), atol=1e-5)
        True
    """

    c: PermutationClass
    kind: GroupKind
    partner: tuple[int, ...] = ()

    def zeros(self) -> Tensor:
        """The coordinates of the identity, float32."""
        shape = {
            GroupKind.COMPLEX_PAIRS: (2, self.c.size // 2),
            GroupKind.POSITIVE: (self.c.size,),
            GroupKind.MONOMIAL: (self.c.size,),
        }.get(self.kind, (self.c.size, self.c.size))
        return torch.zeros(self.c.count, *shape)

    def element(self, coordinates: Tensor) -> Element:
        """What has some coordinates, differentiable in them.

        Args:
            coordinates: of the shape of `zeros`.
        """
        if self.kind in _SCALED:
            return Element(coordinates.exp(), (-coordinates).exp())
        if self.kind is GroupKind.COMPLEX_PAIRS:
            sizes, angles = coordinates.unbind(1)
            return Element(self._turned(sizes.exp(), angles), self._turned((-sizes).exp(), angles))
        if self.kind in _SKEW:
            skew = coordinates - coordinates.mT
            if self.kind is GroupKind.ORTHOGONAL_FIXING_ONES:
                skew = skew - skew.mean(1, keepdim=True)
                skew = skew - skew.mean(2, keepdim=True)
            matrix = torch.linalg.matrix_exp(skew)
            return Element(matrix, matrix)
        return Element(
            torch.linalg.matrix_exp(coordinates), torch.linalg.matrix_exp(-coordinates).mT
        )

    def _turned(self, sizes: Tensor, angles: Tensor) -> Tensor:
        """Matrices that multiply each pair by a complex number."""
        partner = torch.tensor(self.partner, device=sizes.device)
        units = torch.arange(len(partner), device=sizes.device)
        first = units[units < partner]
        second = partner[first]
        matrix = sizes.new_zeros(len(sizes), len(partner), len(partner))
        real, imaginary = sizes * angles.cos(), sizes * angles.sin()
        matrix[:, first, first] = real
        matrix[:, second, second] = real
        matrix[:, first, second] = -imaginary
        matrix[:, second, first] = imaginary
        return matrix


def charts_of(groups: Groups, classes: Iterable[PermutationClass]) -> dict[str, Chart]:
    """Charts of the classes whose groups have a continuous part.

    Args:
        groups: that act on a model.
        classes: of its symmetry, with those that are turned in pairs.
    """
    found: dict[str, Chart] = {}
    for c in classes:
        own = groups.kinds[c.name]
        if own.kind.dimension(c.size):
            found[c.name] = Chart(c, own.kind, own.partner)
    return found


def condition_of(matrices: Tensor) -> float:
    """The largest condition number of some matrices, or the ratio of some numbers.

    Args:
        matrices: of shape (copies, units, units), or numbers of shape (copies, units).
    """
    if matrices.dim() > 2:
        values: Tensor = torch.linalg.svdvals(matrices)
    else:
        values = matrices.abs()
    return float((values.amax(-1) / values.amin(-1)).max())
