"""How alike the units of two models are, class by class, before and after rebasing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxrebasin.alignment import Alignment, Certificate, applied
from fxrebasin.kinds import GroupKind, Place
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.places import parts_of, positions_of, rows_of
from fxrebasin.running.batches import State

CELLS = 96
"""A wider class is drawn with this many cells on a side."""
_ROWS = 4096  # units of A that are compared with all of B at a time
_NONE = {"amax": -2.0, "amin": 2.0}  # what no cosine is


@dataclass(frozen=True)
class Likeness:
    """How alike the units of one class are in two models.

    A unit is all that the weights hold for it, and two are as alike as the cosine of the angle
    between them: 1 is the same up to a positive factor, -1 the opposite.

    Args:
        name: of the class.
        size: number of its units in each copy.
        count: number of copies.
        kind: the group that acts on the class.
        before: A's units (rows) against B's (columns), float32 of shape (cells, cells); copies
            follow each other. A cell of several units holds the largest by magnitude.
        after: the same against rebased B.
        own_before: mean cosine of A's unit and B's at the same place.
        own_after: the same for rebased B.
    """

    name: str
    size: int
    count: int
    kind: GroupKind
    before: Tensor
    after: Tensor
    own_before: float
    own_after: float


@dataclass(frozen=True)
class Comparison:
    """Two models whose units are compared.

    Args:
        a: tensors of the reference.
        b: those of the model as it was.
        rebased: those of the rebased model.
        certificate: that rebased it.
    """

    a: State
    b: State
    rebased: State
    certificate: Certificate

    @classmethod
    def of(cls, a: State, b: State, certificate: Certificate) -> Comparison:
        """Rebase B, and compare what all three have in one shape.

        Args:
            a: tensors of the reference.
            b: those of the model.
            certificate: of B towards A.
        """
        return cls(a, b, applied(certificate, b, check_constants=False), certificate)

    @property
    def classes(self) -> tuple[PermutationClass, ...]:
        """Those whose units can be compared."""
        found = self.certificate.classes
        return tuple(c for c in found if any(self._places(c)))

    def kind(self, c: PermutationClass) -> GroupKind:
        """The group that acts on a class."""
        if isinstance(self.certificate, Alignment):
            return self.certificate.kinds.get(c.name, c.kind)
        return c.kind

    def elements(self, c: PermutationClass) -> int:
        """How many numbers the compared tensors of a class have."""
        return sum(self.a[name].numel() for name in {place.state for place in self._places(c)})

    def likeness(self, c: PermutationClass) -> Likeness:
        """Compare the units of a class.

        A few thousand units are compared at a time, and one tensor after the other is widened.
        Tensors with one number for each unit, such as biases, count only where there are no others.

        Args:
            c: the class.
        """
        places = list(self._places(c))
        told = [place for place in places if self._numbers(place, c) > 1] or places
        lengths = self._lengths(told, c)
        before, after = _Grid.of(c), _Grid.of(c)
        for start in range(0, c.count * c.size, _ROWS):
            block = slice(start, start + _ROWS)
            sums = [torch.zeros(before.rows(block), c.count * c.size) for _ in range(2)]
            for place in told:
                a, *others = (
                    self._rows(state, place, c) for state in (self.a, self.b, self.rebased)
                )
                for total, other in zip(sums, others, strict=True):
                    total.addmm_(a[block], other.T)
            for grid, total, of_b in zip((before, after), sums, lengths[1:], strict=True):
                grid.enter(block, (total / lengths[0][block, None] / of_b).clamp_(-1, 1))
        return Likeness(
            *(c.name, c.size, c.count, self.kind(c)),
            *(before.cells, after.cells, before.own, after.own),
        )

    def _lengths(self, places: Sequence[Place], c: PermutationClass) -> list[Tensor]:
        """The Euclidean lengths of the units of all three; 1 for those that are all zeros."""
        squares = [torch.zeros(c.count * c.size) for _ in range(3)]
        for place in places:
            for total, state in zip(squares, (self.a, self.b, self.rebased), strict=True):
                total += self._rows(state, place, c).square().sum(1)
        return [torch.where(total > 0, total, 1.0).sqrt() for total in squares]

    def _rows(self, state: State, place: Place, c: PermutationClass) -> Tensor:
        """What a model holds for each unit, float32 of shape (copies times units, numbers)."""
        layout = self._layout(c)
        positions = positions_of(layout, place, c, self._sizes)
        rows = rows_of(state[place.state].detach(), layout[place.state][place.group], positions)
        real = torch.view_as_real(rows) if rows.is_complex() else rows
        return real.to("cpu", torch.float32).reshape(c.count * c.size, -1)

    def _numbers(self, place: Place, c: PermutationClass) -> int:
        """How many numbers a tensor holds there for each unit."""
        shape, axes = self.a[place.state].shape, self._layout(c)[place.state][place.group].axes
        others = (size for axis, size in enumerate(shape) if axis not in axes)
        positions = positions_of(self._layout(c), place, c, self._sizes)
        return math.prod(others) * positions.shape[-1]

    def _places(self, c: PermutationClass) -> Iterator[Place]:
        """Where units of a class are in tensors that all models have in one shape."""
        for name, groups in self._layout(c).items():
            if not self._comparable(name):
                continue
            for g, group in enumerate(groups):
                for p, piece in enumerate(group.pieces):
                    for s, slot in enumerate(piece.slots):
                        if slot.class_name == c.name:
                            for part in range(len(parts_of(piece))):
                                yield Place(name, g, p, s, part)

    def _comparable(self, name: str) -> bool:
        if name not in self.a or name not in self.b or name not in self.rebased:
            return False
        a, b = self.a[name], self.b[name]
        return a.shape == b.shape and all(t.is_floating_point() or t.is_complex() for t in (a, b))

    def _layout(self, c: PermutationClass) -> Layout:
        found = self.certificate
        if isinstance(found, Alignment):
            turned = any(c.name == other.name for other in found.groups.turned)
            return found.groups.turned_layout if turned else found.permutation.layout
        return found.layout

    @property
    def _sizes(self) -> Mapping[str, int]:
        return {c.name: c.size for c in self.certificate.classes}


def chosen(
    comparison: Comparison, most: int, names: Sequence[str] = ()
) -> tuple[PermutationClass, ...]:
    """The classes that are drawn where there is no room for all.

    Those of repeated layers, alike in all but the numbers in their names, take turns: the first of
    each kind, then the last, then the others. Kinds with most weights come first.

    Args:
        comparison: has them.
        most: how many.
        names: of classes that are asked for, all of which are drawn.

    Returns:
        In the order of the model.
    """
    classes = comparison.classes
    if names:
        return tuple(c for c in classes if c.name in names)
    kinds: dict[tuple[str, int], list[PermutationClass]] = {}
    for c in classes:
        kinds.setdefault((_without_numbers(c.name), c.size), []).append(c)
    order = sorted(kinds.values(), key=lambda same: -max(map(comparison.elements, same)))
    turns = [[*same[:1], *same[:0:-1][:1], *same[1:-1]] for same in order]
    picked = [same[turn] for turn in range(len(classes)) for same in turns if turn < len(same)][
        :most
    ]
    return tuple(c for c in classes if any(c is other for other in picked))


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


@dataclass
class _Grid:
    """Cosines of units, put into cells a few rows at a time."""

    cell: Tensor
    high: Tensor
    low: Tensor
    total: float = 0.0

    @classmethod
    def of(cls, c: PermutationClass) -> _Grid:
        units = c.count * c.size
        cells = min(units, CELLS)
        high, low = (torch.full((cells, cells), _NONE[reduce]) for reduce in ("amax", "amin"))
        return cls(torch.arange(units) * cells // units, high, low)

    def rows(self, block: slice) -> int:
        """How many units a block has."""
        return len(self.cell[block])

    def enter(self, block: slice, cosines: Tensor) -> None:
        """Take in the cosines of some units of A with all of B."""
        self.total += float(cosines.diagonal(block.start).double().sum())
        for extreme, reduce in ((self.high, "amax"), (self.low, "amin")):
            across = torch.full((len(cosines), len(extreme)), _NONE[reduce])
            across.scatter_reduce_(1, self.cell.expand_as(cosines), cosines, reduce)
            down = self.cell[block, None].expand_as(across)
            extreme.scatter_reduce_(0, down, across, reduce)

    @property
    def cells(self) -> Tensor:
        """The largest by magnitude of each cell."""
        return torch.where(self.high >= -self.low, self.high, self.low)

    @property
    def own(self) -> float:
        """The mean cosine of units at the same place."""
        return self.total / len(self.cell)
