"""Elements of the groups that act on a model's state: the function stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.groups import Groups
from fxrebasin.kinds import Behind, Place
from fxrebasin.layout import PermutationClass
from fxrebasin.places import positions_of, rows_of, with_rows


def acted(
    state: Mapping[str, Tensor],
    groups: Groups,
    classes: Sequence[PermutationClass],
    elements: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The state after elements of the groups of some classes acted on it.

    Factors of norms stay; an element acts on what they scale once they are moved into what reads
    it, and they are moved back after that.

    Args:
        state: in double precision; left as it is.
        groups: that act on it.
        classes: of its symmetry, with those that are turned in pairs.
        elements: by the name of the class, of shape (copies, units, units) where matrices act, else
            numbers that are not zero, of shape (copies, units).
    """
    found = dict(state)
    sizes = {c.name: c.size for c in classes}
    for c in (c for c in classes if c.name in elements):
        own, element = groups.kinds[c.name], elements[c.name]
        layout = groups.layout_of(c.name)
        for place in own.parts or dict.fromkeys((*own.signs, *own.scales)):
            group = layout[place.state][place.group]
            positions = positions_of(layout, place, c, sizes)
            rows = rows_of(found[place.state], group, positions)
            if own.parts:
                part = own.parts[place]
                scale = _scale(state, groups, part, c, sizes)
                rows = _mixed(rows * scale, element, part.variance) / scale
            else:
                size = element.abs() ** own.scales.get(place, 0)
                sign = element.sign() ** own.signs.get(place, 0)
                offset = own.offsets.get(place, 0.0)
                rows = (rows + offset) * (size * sign)[:, :, None, None] - offset
            found[place.state] = with_rows(found[place.state], group, positions, rows)
    return found


def _mixed(rows: Tensor, element: Tensor, variance: int) -> Tensor:
    """Rows of units, mixed in each copy by a matrix, or by the transpose of its inverse."""
    matrix = element if variance > 0 else torch.linalg.inv(element).mT
    return torch.einsum("cij,cjpr->cipr", matrix, rows)


def _scale(
    state: Mapping[str, Tensor],
    groups: Groups,
    part: Behind,
    c: PermutationClass,
    sizes: Mapping[str, int],
) -> Tensor:
    """By what a part is multiplied when the factors in front of it become ones."""
    found = torch.ones(1, c.size, 1, 1, dtype=torch.float64)
    for factor in part.factors:
        found = found * numbers_of(state, groups, factor, c, sizes)[:, :, None, None]
    return found if part.reads else 1 / found


def numbers_of(
    state: Mapping[str, Tensor],
    groups: Groups,
    place: Place,
    c: PermutationClass,
    sizes: Mapping[str, int],
) -> Tensor:
    """What a vector stands for, for each unit of a class, of shape (copies, units).

    Args:
        state: of the model.
        groups: that act on it.
        place: the vector.
        c: the class.
        sizes: of all classes that it is within.
    """
    layout = groups.layout_of(c.name)
    group = layout[place.state][place.group]
    positions = positions_of(layout, place, c, sizes)
    offset = groups.kinds[c.name].offsets.get(place, 0.0)
    return rows_of(state[place.state].double(), group, positions)[:, :, 0, 0] + offset


def factors_of(
    state: Mapping[str, Tensor], groups: Groups, classes: Sequence[PermutationClass]
) -> dict[str, tuple[Tensor, ...]]:
    """The numbers that a state has chosen for factors of units, which what reads them divides by.

    Args:
        state: of the model.
        groups: that act on it.
        classes: of its symmetry.

    Returns:
        By the name of the class, one tensor of shape (copies, units) for each of its factors.
    """
    sizes = {c.name: c.size for c in classes}
    return {
        c.name: tuple(
            numbers_of(state, groups, next(iter(factor)), c, sizes)
            for factor in groups.kinds[c.name].factors
        )
        for c in (*classes, *groups.still)
        if groups.kinds[c.name].factors
    }


def refactored(
    state: Mapping[str, Tensor],
    groups: Groups,
    classes: Sequence[PermutationClass],
    wanted: Mapping[str, Sequence[Tensor]],
) -> dict[str, Tensor]:
    """The state with other factors of units, which what reads them makes up for.

    Where an operator sees the sign of what is scaled, factors keep theirs. Where zeros are wanted,
    nothing could make up for them, and the factor is one instead. Where the state itself has zeros,
    what reads them is zero from then on, whatever is wanted.

    Args:
        state: in double precision; left as it is.
        groups: that act on it.
        classes: of its symmetry.
        wanted: as `factors_of` returns them; ones for classes that it does not name.

    Raises:
        InputError: a factor is zero where something is added behind it that nothing can take back.
    """
    found = dict(state)
    sizes = {c.name: c.size for c in classes}
    for c in (*classes, *groups.still):
        own = groups.kinds[c.name]
        for number, factor in enumerate(own.factors):
            chosen = next(iter(factor))
            before = numbers_of(found, groups, chosen, c, sizes)
            after = torch.ones_like(before)
            if c.name in wanted:
                after = wanted[c.name][number].to(before)
                after = torch.where(after == 0, torch.ones_like(after), after)
            if not own.parts:  # signs stay, and a zero has no size that another could have
                sign = before.sign()
                after = torch.where(sign == 0, before, after.abs() * sign)
            found = _rescaled(found, groups, factor, (c, sizes), (before, after))
    return found


def _rescaled(
    state: Mapping[str, Tensor],
    groups: Groups,
    factor: Mapping[Place, int],
    class_with_sizes: tuple[PermutationClass, Mapping[str, int]],
    numbers: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Each place, multiplied by what its factor grows by, to the power that is given for it."""
    found = dict(state)
    before, after = (item[:, :, None, None] for item in numbers)
    same, zero = before == after, before == 0
    grown = torch.where(same | zero, 1.0, after / torch.where(zero, 1.0, before))
    shrunk = torch.where(same, 1.0, before / torch.where(same, 1.0, after))
    chosen, unit = next(iter(factor.items()))
    c = class_with_sizes[0]
    layout = groups.layout_of(c.name)
    for place, power in factor.items():
        group = layout[place.state][place.group]
        positions = positions_of(layout, place, *class_with_sizes)
        offset = groups.kinds[c.name].offsets.get(place, 0.0)
        rows = rows_of(found[place.state], group, positions) + offset
        if place == chosen:
            rows = after.expand_as(rows)
        elif power / unit < 0:
            rows = rows * shrunk ** (-power / unit)
        elif bool((rows.abs() * (zero & ~same) != 0).any()):
            raise InputError(
                f"{chosen.state} holds zeros where {place.state} does not: "
                "nothing can be divided by it"
            )
        else:
            rows = rows * grown ** (power / unit)
        found[place.state] = with_rows(found[place.state], group, positions, rows - offset)
    return found
