"""Where the units of each class are in the state of two models, and how they answer there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from fxrebasin.kinds import ClassKind, GroupKind, Place
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.passes.match.group_problem import GroupProblem
from fxrebasin.places import parts_of, positions_of, rows_of


@dataclass(frozen=True, eq=False)
class Seat:
    """A part of a state tensor that units of a class lie on.

    Attributes:
        place: the part.
        layout: that it is a place of.
        positions: int64 of shape (copies, units, places of each), flat over the axes of the group.
        variance: of matrices: +1 if one acts itself, -1 if the transpose of its inverse does.
        scale: the power to which a factor multiplies units.
        odd: whether units change their sign there.
        others: the names of all other classes that have units on the tensor, and that of the class
            itself if it is on several axes.
    """

    place: Place
    layout: Layout
    positions: Tensor
    variance: int
    scale: int
    odd: bool
    others: frozenset[str]

    def rows(self, state: Mapping[str, Tensor]) -> Tensor:
        """What units hold in a state, of shape (copies, units, numbers).

        Args:
            state: by name.
        """
        group = self.layout[self.place.state][self.place.group]
        return rows_of(state[self.place.state], group, self.positions).flatten(2)


Seats = Mapping[str, tuple[Seat, ...]]
"""By the name of the class."""


def seats_of(problem: GroupProblem) -> Seats:
    """The seats of all classes on the tensors that are compared.

    Args:
        problem: what to match.
    """
    names = problem.compared
    sizes = {c.name: c.size for c in problem.classes}
    turned = {c.name for c in problem.groups.turned}
    layouts = (problem.plain.symmetry.layout, problem.groups.turned_layout)
    on = {name: _classes_on(name, layouts) for name in names}
    found = {}
    for c in problem.classes:
        layout = layouts[c.name in turned]
        own = problem.groups.kinds[c.name]
        found[c.name] = tuple(
            _seat(place, layout, c, sizes, own, _others(on[place.state], c.name))
            for place in _places(layout, c, names)
            if not _is_still(own, place)
        )
    return found


def _is_still(own: ClassKind, place: Place) -> bool:
    """Whether elements of a group of matrices leave a part as it is."""
    return own.kind.has_matrices and place not in own.parts


def _seat(
    place: Place,
    layout: Layout,
    c: PermutationClass,
    sizes: Mapping[str, int],
    own: ClassKind,
    others: frozenset[str],
) -> Seat:
    signed = own.kind in (GroupKind.SIGNED, GroupKind.MONOMIAL)
    return Seat(
        place,
        layout,
        positions_of(layout, place, c, sizes),
        own.parts[place].variance if own.kind.has_matrices else 0,
        0 if own.kind.has_matrices else own.scales.get(place, 0),
        signed and own.signs.get(place, 0) % 2 == 1,
        others,
    )


def _places(layout: Layout, c: PermutationClass, names: Collection[str]) -> Iterator[Place]:
    for state in names:
        for number, group in enumerate(layout.get(state, ())):
            for index, piece in enumerate(group.pieces):
                for slot, item in enumerate(piece.slots):
                    if item.class_name == c.name:
                        for part in range(len(parts_of(piece))):
                            yield Place(state, number, index, slot, part)


def _classes_on(name: str, layouts: tuple[Layout, Layout]) -> tuple[str, ...]:
    """The classes of each group of axes of a tensor, one after the other."""
    found: list[str] = []
    for group in (group for own in layouts for group in own.get(name, ())):
        slots = (slot for piece in group.pieces for slot in piece.slots)
        found += dict.fromkeys(slot.class_name for slot in slots if slot.class_name is not None)
    return tuple(found)


def _others(on: tuple[str, ...], name: str) -> frozenset[str]:
    """All classes but one, unless that one is on other axes of the tensor too."""
    return frozenset(item for item in on if item != name or on.count(name) > 1)
